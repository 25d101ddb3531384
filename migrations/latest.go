package migrations

// LatestSQLite, LatestPostgres and LatestSQLServer return the newest version of the schema that this program knows, which is that
// of every database that it serves from.
func LatestSQLite() (int, error)    { return latestVersion(files, "sqlite") }
func LatestPostgres() (int, error)  { return latestVersion(postgresFiles, "postgres") }
func LatestSQLServer() (int, error) { return latestVersion(sqlserverFiles, "sqlserver") }
