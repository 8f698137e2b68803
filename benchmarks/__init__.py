"""One script a claim: ours and a peer, or a limit, in the same run. `README.md` has the table and says how to read it."""
