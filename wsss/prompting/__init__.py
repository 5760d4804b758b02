"""Networks that find what words name: one module each."""
