"""What became of each request, kept in SQL: written beside the traffic, read by those whose requests they were."""
