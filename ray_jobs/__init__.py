"""Units → scheduler → replicas → committed tables. The only folder that knows Ray."""
