"""Text from a trained model: choosing the next token, and continuing a prompt."""

from litmegalodon.inference.sampling import check_drawing, continue_text, sample_next

__all__ = ["check_drawing", "continue_text", "sample_next"]
