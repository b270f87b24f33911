"""From a model, data and one wish to a plan that is certified to fulfil it: ``lookless optimize``."""
