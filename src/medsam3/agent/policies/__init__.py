"""Who decides what is done next: an LLM, rules fitted on validation data, or in evaluation the truth."""
