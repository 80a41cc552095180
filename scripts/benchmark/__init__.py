"""What dcn-bench measures, against whom, and how."""
