// Package admin is the listener for operators: health, metrics, a JSON API and the page that
// people look at. It is plain HTTP (TLS where it is given a certificate), on a port of its own,
// and web servers never talk to it.
//
// # Who may ask
//
// Where a token is set (always, unless the address is loopback), every path but /livez, /readyz and
// /login wants it: as "Authorization: Bearer TOKEN", or as the cookie that POST /login sets. Without
// it /api and /metrics answer 401, and the page redirects to /login.
//
// Where no token is set, the Host header must be localhost or an IP address (DNS rebinding), else 403.
//
// Everywhere: a request with an Origin that is not this server's, or with Sec-Fetch-Site cross-site or
// same-site, is 403 (a link to the page from elsewhere is not). A request that changes something is
// POST or DELETE and has "Content-Type: application/json", also with an empty body, else 415 (CSRF).
//
//	GET  /login       a form with one field, token
//	POST /login       form-encoded token; sets the cookie (HttpOnly, SameSite=Strict, 12 h) and redirects to /
//	POST /logout      takes the cookie back (with the JSON content type, as all changes) and answers 204
//	GET  /            the page; /page/… is the page's, too
//	GET  /livez       200 "ok" as long as the process answers; asks no store
//	GET  /readyz      200 "ok", or 503 and the reason: draining, or the store has failed for 30 s
//	GET  /metrics     Prometheus, text format (docs/metrics.md)
//	GET  /debug/pprof/…  only with admin.pprof, else 404
//
// # JSON
//
// Answers are application/json, UTF-8. Times are RFC 3339 in UTC. Durations end in _seconds and
// are numbers with a fraction; sizes are bytes. What is absent or null is not known or does not apply. Fields may be
// added; ignore what you do not know. Whoever may ask sees whole session IDs: who has one can take
// over its session.
//
// An answer of 4xx or 5xx is an object whose "error" says what is wrong, for people:
//
//	400  a parameter is missing or cannot be read          401  no token, or a wrong one
//	403  Host or Origin                                     404  no such session, application or path
//	405  wrong method                                       409  the state is another one, see the calls
//	413  a body of more than 64 KiB                         415  a change without "Content-Type: application/json"
//	422  settings have faults, or a switch cannot begin: "faults" is a list of texts
//	501  the store cannot be looked into, or not switched   503  the store fails, or the server is stopping
//
// # Sessions
//
// A session is named by its application and its ID. The application is given as app=f197a8d4, eight hexadecimal
// digits (what ASPState appends to the ID), or as application=/lm/w3svc/1/root/shop, its name; case
// matters only where several names differ by it. id is the whole ID.
//
//	GET /api/sessions?app=…|application=…&id=PREFIX&locked=true&order=key|size|lock|created&limit=100&after=CURSOR
//
// lists sessions: of one application or of all, those whose ID begins with id, only locked ones. order is
// key (default: by application and ID, the only one that can be paged), size (largest first), lock
// (oldest lock first, locked ones only) or created (oldest first). limit is 1 to 1000, default 100. next is the cursor for
// after where there may be more.
//
//	{"sessions": [SESSION, …], "next": "f197a8d4bpr4mimb…"}
//
//	SESSION = {
//	  "app_id": "f197a8d4", "application": "/lm/w3svc/1/root/shop",   (name: "" while it is not known)
//	  "id": "bpr4mimb2vjnvtn2jc4yp3uo", "bytes": 7168,
//	  "created": "2026-11-22T16:00:00Z",
//	  "timeout_seconds": 1200,                  0: never expires
//	  "left_seconds": 1100.5,                   absent: never expires
//	  "locked": true, "lock_cookie": 5,
//	  "lock_age_seconds": 3.25,                 since the lock was taken; absent where it is not locked
//	  "uninitialized": false
//	}
//
//	GET /api/session?app=…&id=…&values=true
//
// shows one session, its item decoded. Keys, types and sizes are always there, values only with values=true,
// which leaves an audit line in the log. Where not all of the item can be decoded, item has what can be, and
// item_error says what is wrong.
//
//	{"session": SESSION, "item": ITEM, "item_error": "…"}
//
//	ITEM is item.Item as JSON: see package server/item for its fields.
//
//	POST /api/session/unlock   {"app": "f197a8d4", "id": "…", "lock_cookie": 5}
//
// releases the lock: who waits for it gets it. With lock_cookie (optional; application works in place of app) only that lock, else
// whichever there is. Answers {"unlocked": true, "lock_cookie": 5}; 409 where it is not locked or has another lock by now.
//
//	DELETE /api/session?app=…&id=…
//
// removes the session, locked or not, and answers {"removed": true}. Its user is logged out.
//
// # Server
//
//	GET /api/keys?after=CURSOR
//
// counts sessions by the key that they are encrypted with: all of them, from the cursor on, for a few seconds. next is the
// cursor where there are more. use is encrypts, decrypts, or "" for a key that is not in the settings.
//
//	{"keys": [{"id": "3f2a9c10", "use": "encrypts", "sessions": 1200}], "not_encrypted": 3, "unknown_format": 0, "next": "f197a8d4bpr4mimb…"}
//
//	GET /api/applications
//
// counts sessions by application, as of the last sample (every 5 s, or as often as costs a fiftieth of the time).
//
//	{"applications": [{"app_id": "f197a8d4", "name": "/lm/…", "sessions": 9000, "locked": 3, "bytes": 64512000}, …],
//	 "counted": "2026-11-22T16:00:00Z", "took_seconds": 0.02, "error": "…"}   counted is absent before the first sample
//
//	GET /api/status
//
//	{"version": "1.0.0", "host": "state1", "pid": 4711, "started": "…", "now": "…",
//	 "ready": true, "not_ready": "…",                 why it is not ready
//	 "mode": "SQLServer", "store": "postgres",        sqlite, postgres, sqlserver or memory
//	 "database": "postgres://aspstate@db1/sessions",  without password; absent for memory
//	 "schema_version": 3,                             absent for memory
//	 "listen": ["10.1.2.10:42424"], "allow": ["10.1.2.0/24"],
//	 "lock_wait_seconds": 1, "request_budget_seconds": 8,
//	 "sessions": 10000, "locked": 3, "bytes": 71680000, "counted": "…",   as of the last sample; absent before it
//	 "waiters": 2,                                    requests that wait for a lock
//	 "connections": 120, "connections_limit": 10000,
//	 "connections_refused": 0,                        since the start, by the allow list and by the limit
//	 "connections_refused_by_allow": 0,
//	 "store_failing_seconds": 0,                      for how long; 0: it works
//	 "store_error": "…",                              its last failure, while it fails
//	 "requests_given_up": 0,                          since the start, because the store failed
//	 "items_unreadable": 0,                           since the start: requests whose item could not be decrypted, or was not encrypted
//	 "work_left": 0,                                  releases and renewals to be done when it is back
//	 "pool": {"connections": 4, "queued": 0},         absent where the store has none; queued: calls that wait for a connection
//	 "sweeper": {"interval_seconds": 60, "last": "…", "swept": 123, "error": "…"},   last: end of the last one that succeeded
//	 "totals": {"requests": 1, "sessions_created": 1, "sessions_timed_out": 1, "sessions_abandoned": 1},   since the start
//	 "rates": POINT,                                  the last one of the history; absent in the first seconds
//	 "switch": {"stage": "moving",                    the last move that this server took part in; absent where there was none
//	            "from": "sqlite:…", "to": "postgres://…",                    without passwords
//	            "claimed": 120,                       moved because web servers asked for them
//	            "copying": true,                      this server moves the others: moved of total, at per_second
//	            "moved": 4000, "total": 10000, "per_second": 2000, "left_seconds": 3,
//	            "error": "…"},                        why copying stopped for now; it goes on. stage ends with moved
//	 "take_over": {"taken": 12, "missed": 3, "last": "…"}}   sessions that came from the state server of takeOver, since the start, those that
//	                                                  were not there either, and when the last one came; absent without takeOver
//
//	GET /api/history?after=TIME
//
// has a point for every 5 s of the last 15 minutes, oldest first; with after only later ones (give the last point's time). The last
// one covers the 5 s before its time. Rates are per second. Latencies are estimated from histograms, null where
// there was nothing to measure.
//
//	{"interval_seconds": 5, "points": [POINT, …]}
//
//	POINT = {
//	  "time": "…",
//	  "requests": 812.4, "locked": 3.2, "not_found": 1.0, "bad": 0, "unanswered": 0,   answers 423, 404, 400, and connections closed without one
//	  "operations": {"get": 300.2, "get_exclusive": 250, "release": 0, "set": 250, "set_uninitialized": 0, "remove": 1, "reset_timeout": 11.2},
//	  "p50_seconds": 0.0004, "p95_seconds": 0.002, "p99_seconds": 0.9,        request to answer, lock waits included
//	  "store_p95_seconds": 0.0006, "store_errors": 0,
//	  "lock_waits": 3.2, "lock_handovers": 3.0,       waits that ended, and those that ended with the lock or the item
//	  "lock_wait_p95_seconds": 0.4, "waiters": 2,
//	  "connections": 120, "sessions": 10000, "locked_sessions": 3, "bytes": 71680000,   sessions, …: as of the last sample, null before it
//	  "received_bytes": 81234.5, "sent_bytes": 91234.5
//	}
//
//	POST /api/reload
//
// reads the settings again, as SIGHUP does: {"changed": ["lockWait"], "restart": ["listen"]}, where the latter take effect with a
// restart; 422 with faults, and the old settings stay.
//
//	POST /api/switch   {"to": "postgres://…"}
//
// begins to move all sessions to another store while serving: a connection string, env:NAME, file:PATH or StateServer. Answers 202 with the "switch"
// object of /api/status, where its progress can be followed; 409 where a move is under way; 422 where it cannot begin.
//
//	POST /api/backup
//
// answers with a copy of the SQLite file as it is now, application/vnd.sqlite3; 501 for other stores; 503 where it cannot be made now.
package admin
