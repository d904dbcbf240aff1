"""Values, optimizer states and residuals on disk."""
