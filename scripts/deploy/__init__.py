"""dcn-export: targets, the runner that verifies them, and the report."""
