"""The contract: what a user asks for, shared by REST, client, CLI, store and the Ray jobs."""
