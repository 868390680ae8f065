"""The KServe contract at the worker: requests to arrays and back, the service, streams, shared memory."""
