"""The Debian package, installed in a root of its own: run by `make test-deb`."""
