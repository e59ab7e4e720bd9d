"""The numbers of a policy that a table has room for."""

HEADLINES = {
    "tokens easy": "reasoning_tokens/easy",
    "medium": "reasoning_tokens/medium",
    "hard": "reasoning_tokens/hard",
    "all": "reasoning_tokens",
    "gIoU": "giou",
    "gIoU easy": "giou/easy",
    "gIoU hard": "giou/hard",
    "cIoU": "ciou",
    "parse rate": "parse_rate",
}
"""Heading of a column → name of the metric."""
