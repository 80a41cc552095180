"""What dcn-bench measures, with which providers, and how."""
