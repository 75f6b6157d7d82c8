"""Where and when audits run: the cluster's lifetime, the Prefect flow, configuration files and the command line."""
