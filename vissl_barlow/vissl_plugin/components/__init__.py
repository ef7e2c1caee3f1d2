"""One small file per component that the plugin registers with VISSL."""
