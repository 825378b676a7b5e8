"""What a user would take instead: specialists trained on one data set, and box models, asked the same questions."""
