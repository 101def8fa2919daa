"""Runs the WebSocket tests of Starlette, uvicorn and FastAPI with every application wrapped in the middleware."""
