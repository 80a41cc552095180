"""One run of dcn-train."""
