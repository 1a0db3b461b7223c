"""The data plane without processes: real exchanges and expert servers, a fake clock and a fake wire."""
