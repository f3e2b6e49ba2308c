-- The daemon's role. LOGIN REPLICATION is all that it needs: no table is read, so no SELECT is granted.
-- It has no password; give it one with \password, or let pg_hba.conf decide.
CREATE ROLE {role} LOGIN REPLICATION;
