"""How a frame is shown, to a model and to a person: grey window, orientation, square pixels, crops, drawings.

There is one `View` of an image. Training, evaluation, the agent and use all show their frames through it.
"""
