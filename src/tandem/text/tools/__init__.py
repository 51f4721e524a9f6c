"""What models write beside plain text: calls of tools and reasoning, found in an answer as it comes."""
