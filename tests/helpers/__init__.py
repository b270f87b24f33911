"""What tests share: tiny models, the slow reference they are compared with, and doubles."""
