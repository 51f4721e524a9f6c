"""The HTTP server: OpenAI's API in front of engines that run in processes of their own."""
