"""Seconds and mebibytes: stock and plans in turn, in transformers and in vLLM."""
