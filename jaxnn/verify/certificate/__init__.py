"""The library's own rules, examples for each, and the certificate that they are proven."""
