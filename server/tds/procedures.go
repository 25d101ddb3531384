package tds

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"aspstate/backends"
	"aspstate/server"
	"aspstate/server/stateserver/client"
)

// The parameters of the procedures ([MS-ASPSS]), in the order in which they are declared.
var (
	paramID         = declared{name: "@id", kind: kindText}
	paramTimeout    = declared{name: "@timeout", kind: kindInt}
	paramCookie     = declared{name: "@lockCookie", kind: kindInt}
	paramItemShort  = declared{name: "@itemShort", kind: kindBinary}
	paramItemLong   = declared{name: "@itemLong", kind: kindBinary}
	outItemShort    = declared{"@itemShort", kindBinary, columnShort, true}
	outLocked       = declared{"@locked", kindBit, columnBit, true}
	outLockDate     = declared{"@lockDate", kindDateTime, columnDateTime, true}
	outLockAge      = declared{"@lockAge", kindInt, columnInt, true}
	outLockCookie   = declared{"@lockCookie", kindInt, columnInt, true}
	outActionFlags  = declared{"@actionFlags", kindInt, columnInt, true}
	outMajorVersion = declared{"@@ver", kindInt, columnInt, true}
	outVersion      = declared{"@ver", kindText, columnVersion, true}
	outHash         = declared{"@hash", kindInt, columnInt, true}
	outAppID        = declared{"@appId", kindInt, columnInt, true}

	// Of ASP.NET 1.0, 1.1, and 2.0 to 4.8.
	stateItem1 = []declared{paramID, outItemShort, outLocked, outLockDate, outLockCookie}
	stateItem2 = []declared{paramID, outItemShort, outLocked, outLockAge, outLockCookie}
	stateItem3 = []declared{paramID, outItemShort, outLocked, outLockAge, outLockCookie, outActionFlags}
)

// procedures are those of ASPState, by their names in lower case.
var procedures = byName(
	procedure{"GetMajorVersion", []declared{outMajorVersion}, getMajorVersion},
	procedure{"TempGetVersion", []declared{outVersion}, getVersion},
	procedure{"GetHashCode", []declared{{name: "@input", kind: kindText}, outHash}, getHashCode},
	procedure{"TempGetAppID", []declared{{name: "@appName", kind: kindText}, outAppID}, getAppID},
	procedure{"TempGetStateItem", stateItem1, get},
	procedure{"TempGetStateItem2", stateItem2, get},
	procedure{"TempGetStateItem3", stateItem3, get},
	procedure{"TempGetStateItemExclusive", stateItem1, getExclusive},
	procedure{"TempGetStateItemExclusive2", stateItem2, getExclusive},
	procedure{"TempGetStateItemExclusive3", stateItem3, getExclusive},
	procedure{"TempReleaseStateItemExclusive", []declared{paramID, paramCookie}, release},
	procedure{"TempInsertUninitializedItem", []declared{paramID, paramItemShort, paramTimeout}, insertUninitialized},
	procedure{"TempInsertStateItemShort", []declared{paramID, paramItemShort, paramTimeout}, insert},
	procedure{"TempInsertStateItemLong", []declared{paramID, paramItemLong, paramTimeout}, insert},
	procedure{"TempUpdateStateItemShort", []declared{paramID, paramItemShort, paramTimeout, paramCookie}, update},
	procedure{"TempUpdateStateItemShortNullLong", []declared{paramID, paramItemShort, paramTimeout, paramCookie}, update},
	procedure{"TempUpdateStateItemLong", []declared{paramID, paramItemLong, paramTimeout, paramCookie}, update},
	procedure{"TempUpdateStateItemLongNullShort", []declared{paramID, paramItemLong, paramTimeout, paramCookie}, update},
	procedure{"TempRemoveStateItem", []declared{paramID, paramCookie}, remove},
	procedure{"TempResetTimeout", []declared{paramID}, resetTimeout},
	procedure{"DeleteExpiredSessions", nil, deleteExpired},
	procedure{"CreateTempTables", nil, nothing},
)

func byName(list ...procedure) map[string]*procedure {
	m := make(map[string]*procedure, len(list))
	for _, p := range list {
		m[strings.ToLower(p.name)] = &p
	}
	return m
}

// getMajorVersion says which dialect of the procedures to call: 8 and above know lockAge.
func getMajorVersion(_ *run, args []value) error {
	args[0] = integer(majorVersion)
	return nil
}

func getVersion(_ *run, args []value) error {
	args[0] = text("2")
	return nil
}

func getHashCode(_ *run, args []value) error {
	if !args[0].null {
		args[1] = integer(int64(backends.HashAppID(args[0].s)))
	}
	return nil
}

// maxAppName is the longest name of an application, which clients cut to 280 characters.
const maxAppName = 1024 // bytes

// getAppID registers an application and tells its number, which ends the IDs of its sessions from then on.
func getAppID(r *run, args []value) error {
	name := args[0].s
	if args[0].null || name == "" || len(name) > maxAppName || !isStorable(name) {
		return errorf(515, 16, "The application's name is missing, or cannot be kept.")
	}
	id, err := r.srv.sessions.Register(r.ctx, r.ask, name)
	if errors.Is(err, backends.ErrFull) {
		return errorf(1105, 17, "Could not register the application: there are too many.")
	}
	if err != nil {
		return err
	}
	args[1] = integer(int64(id))
	r.t.done(tokenDoneInProc, doneCount, didSelect, 1)
	return nil
}

// isStorable reports whether stores can keep a text (backends, rule 10). Lone surrogates have become U+FFFD.
func isStorable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsAny(s, "\x00\uFFFD")
}

const suffixLen = 8 // of the AppID at the end of a session's ID, as hexadecimal digits

// session finds the session of an ID with its suffix. ok is false where there can be none.
func (r *run) session(id value) (session server.Session, ok bool, err error) {
	if id.null || !isStorable(id.s) {
		return session, false, nil
	}
	session.ID = id.s
	name := ""
	if app, bare, found := splitSuffix(id.s); found {
		session.ID = bare
		if name, err = r.srv.sessions.ApplicationOf(r.ctx, r.ask, app); err != nil {
			return session, false, err
		}
	}
	if utf16Len(session.ID) > backends.MaxSessionID {
		return session, false, nil
	}
	session.App = r.srv.sessions.Application(strings.ToLower(name))
	if r.srv.sessions.TakesOver() {
		session.Target = client.Target(name, session.ID)
	}
	return session, true, nil
}

// splitSuffix takes the AppID off the end of an ID. Some clients write it in capital letters.
func splitSuffix(id string) (app backends.AppID, bare string, ok bool) {
	if len(id) <= suffixLen {
		return 0, id, false
	}
	var n uint32
	for _, c := range []byte(id[len(id)-suffixLen:]) {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, id, false
		}
		n = n<<4 | uint32(c)
	}
	return backends.AppID(n), id[:len(id)-suffixLen], true
}

func get(r *run, args []value) error { return r.get(args, server.OpGet) }

func getExclusive(r *run, args []value) error { return r.get(args, server.OpGetExclusive) }

// get answers TempGetStateItem and TempGetStateItemExclusive. Without a session all OUTPUT parameters stay NULL.
func (r *run) get(args []value, op server.Operation) error {
	session, ok, err := r.session(args[0])
	var item backends.Item
	if ok && op == server.OpGetExclusive {
		item, err = r.srv.sessions.GetExclusive(r.ctx, r.ask, session)
	} else if ok {
		item, err = r.srv.sessions.Get(r.ctx, r.ask, session)
	} else if err == nil {
		err = backends.ErrNotFound
	}
	r.count(op, err)
	var found found
	locked, isLocked := errors.AsType[*backends.LockedError](err)
	switch {
	case err == nil:
		if op == server.OpGetExclusive {
			r.granted = lock{session, item.LockCookie}
		}
		found.cookie, found.mark, found.age = item.LockCookie, item.Uninitialized, item.LockAge
		found.since = time.Now().Add(-item.LockAge)
		if len(item.Data) <= shortItem {
			args[1] = binaryOf(item.Data)
		}
		r.srv.sessions.Metrics.Sent.Observe(int64(len(item.Data)))
	case isLocked:
		found.locked, found.cookie, found.mark, found.age = true, locked.Cookie, locked.Uninitialized, locked.Age
		found.since = locked.Since
	case errors.Is(err, backends.ErrNotFound):
		r.t.done(tokenDoneInProc, doneCount, didUpdate, 0)
		return nil
	default:
		return err
	}
	found.set(args)
	r.t.done(tokenDoneInProc, doneCount, didUpdate, 1)
	if len(item.Data) > shortItem {
		r.t.columns(column{"SessionItemLong", columnLong})
		r.t.rowToken()
		r.t.value(columnLong, binaryOf(item.Data))
		r.t.done(tokenDoneInProc, doneCount, didSelect, 1)
	}
	return nil
}

// found is what the OUTPUT parameters of a Get say, besides the item.
type found struct {
	locked, mark bool
	cookie       backends.Cookie
	since        time.Time // when the lock was taken, or the last one
	age          time.Duration
}

func (f found) set(args []value) {
	args[2] = bit(f.locked)
	if args[3].kind == kindDateTime {
		args[3] = value{kind: kindDateTime, t: f.since.Local()}
	} else {
		// As DATEDIFF(second, …) counts: the seconds of the clock that were passed.
		args[3] = integer(f.since.Add(f.age).Unix() - f.since.Unix())
	}
	args[4] = integer(int64(f.cookie))
	if len(args) == len(stateItem3) {
		args[5] = integer(0)
		if f.mark {
			args[5] = integer(1)
		}
	}
}

// count counts a request, and what it was answered.
func (r *run) count(op server.Operation, err error) {
	answer := server.AnswerOK
	_, locked := errors.AsType[*backends.LockedError](err)
	_, bad := errors.AsType[*sqlError](err)
	switch {
	case locked || errors.Is(err, backends.ErrConflict):
		answer = server.AnswerLocked
	case errors.Is(err, backends.ErrNotFound):
		answer = server.AnswerNotFound
	case bad:
		answer = server.AnswerBad
	case !backends.IsAnswer(err):
		answer = server.AnswerNone
	}
	r.srv.sessions.Metrics.Request(server.TDS, op, answer, time.Since(r.ask.Arrived))
}

// silently answers a change: a session that is missing, or has another cookie, is no error and no row.
func (r *run) silently(op server.Operation, did uint16, err error) error {
	r.count(op, err)
	_, locked := errors.AsType[*backends.LockedError](err)
	switch {
	case err == nil:
		r.t.done(tokenDoneInProc, doneCount, did, 1)
	case locked, errors.Is(err, backends.ErrNotFound), errors.Is(err, backends.ErrConflict):
		r.t.done(tokenDoneInProc, doneCount, did, 0)
	default:
		return err
	}
	return nil
}

func release(r *run, args []value) error {
	session, ok, err := r.session(args[0])
	if ok && !args[1].null {
		_, err = r.srv.sessions.Release(r.ctx, r.ask, session, cookie(args[1]), backends.IfCookie)
	} else if err == nil {
		err = backends.ErrNotFound
	}
	return r.silently(server.OpRelease, didUpdate, err)
}

// cookie is a cookie that a client sends. None of a session is below 1; NoCookie matches no lock.
func cookie(v value) backends.Cookie {
	return max(backends.NoCookie, backends.Cookie(v.n))
}

func resetTimeout(r *run, args []value) error {
	session, ok, err := r.session(args[0])
	if ok {
		err = r.srv.sessions.ResetTimeout(r.ctx, r.ask, session)
	} else if err == nil {
		err = backends.ErrNotFound
	}
	return r.silently(server.OpResetTimeout, didUpdate, err)
}

func remove(r *run, args []value) error {
	session, ok, err := r.session(args[0])
	if ok && !args[1].null {
		err = r.srv.sessions.Remove(r.ctx, r.ask, session, cookie(args[1]), backends.IfCookie)
	} else if err == nil {
		err = backends.ErrNotFound
	}
	return r.silently(server.OpRemove, didDelete, err)
}

// update stores an item under the condition that the cookie is the session's last, locked or not. What the short and long forms of it do to
// the column that they do not set has no meaning here.
func update(r *run, args []value) error {
	session, ok, err := r.session(args[0])
	if !ok || args[3].null {
		if err == nil {
			err = backends.ErrNotFound
		}
		return r.silently(server.OpSet, didUpdate, err)
	}
	w := backends.Write{LockCookie: cookie(args[3]), Condition: backends.IfCookie}
	if err := r.item(&w, session, args); err != nil {
		r.count(server.OpSet, err)
		return err
	}
	return r.silently(server.OpSet, didUpdate, full(r.srv.sessions.Set(r.ctx, r.ask, session, w)))
}

var errFull = errorf(1105, 17, "Could not store the session: the store is full, or the application has reached its quota. The session keeps its old item.")

// full turns a refusal for want of room into what is answered.
func full(err error) error {
	if errors.Is(err, backends.ErrFull) {
		return errFull
	}
	return err
}

func insert(r *run, args []value) error { return r.insert(args, server.OpSet, false) }

func insertUninitialized(r *run, args []value) error {
	return r.insert(args, server.OpSetUninitialized, true)
}

// insert creates a session. One that exists stays as it is, and is error 2627, which clients expect and swallow.
func (r *run) insert(args []value, op server.Operation, uninitialized bool) error {
	session, ok, err := r.session(args[0])
	if err == nil && !ok {
		err = errorf(515, 16, "The session's ID is missing, is longer than %d characters, or cannot be kept.", backends.MaxSessionID+suffixLen)
	}
	w := backends.Write{Condition: backends.IfMissing, Uninitialized: uninitialized}
	if err == nil {
		err = r.item(&w, session, args)
	}
	if err == nil {
		err = full(r.srv.sessions.Set(r.ctx, r.ask, session, w))
	}
	r.count(op, err)
	switch {
	case err == nil:
		r.t.done(tokenDoneInProc, doneCount, didInsert, 1)
	case errors.Is(err, backends.ErrExists):
		r.t.fail(errorf(2627, 14, "Violation of PRIMARY KEY constraint. Cannot insert duplicate key in object 'ASPStateTempSessions': "+
			"the session exists already."), "")
		r.t.info(3621, "The statement has been terminated.")
		r.t.done(tokenDoneInProc, doneError, didInsert, 0)
	default:
		return err
	}
	return nil
}

// item puts the item and timeout of an insert or update into w. One that is too large leaves its session unlocked, since the client will
// not release it.
func (r *run) item(w *backends.Write, session server.Session, args []value) error {
	data, minutes := args[1], args[2]
	switch {
	case minutes.null:
		return errorf(515, 16, "Cannot insert the value NULL into column 'Timeout'.")
	case len(data.b) == 0: // or NULL
		// Never stored (backends, rule 9): a web server takes an empty item for a missing session, and leaves the lock it
		// got with it. ASPState stores it, and web applications of mode="SQLServer" fail when they read it; they write none.
		return errorf(515, 16, "The item is empty, which no session is.")
	case int64(len(data.b)) > r.settings.Body:
		r.srv.log.Warn("item refused: it is larger than limits.body", "client", r.RemoteAddr(),
			"application", session.App.Name, "session", backends.ShortID(session.ID), "bytes", len(data.b), "limit", r.settings.Body)
		if w.LockCookie > 0 {
			r.srv.sessions.ReleaseLater(session, w.LockCookie)
		}
		return errorf(1105, 17, "The item of %d bytes is larger than limits.body of %s.", len(data.b), serverName)
	}
	r.srv.sessions.Metrics.Received.Observe(int64(len(data.b)))
	w.Data, w.Timeout = data.b, timeout(minutes.n)
	return nil
}

// maxMinutes is the longest timeout that is kept: a hundred years. ASPState keeps any, but tells none.
const maxMinutes = 100 * 365 * 24 * 60

// timeout is the time that a session lives. One of 0 or less makes it expired from the start, where 0 is
// for ever on the state server's port.
func timeout(minutes int64) time.Duration {
	if minutes <= 0 {
		return -time.Minute
	}
	return time.Duration(min(minutes, maxMinutes)) * time.Minute
}

const (
	sweepBatch = 1000
	// maxSweeps bounds one call of DeleteExpiredSessions; the server's own sweeper does the rest.
	maxSweeps = 100
)

func deleteExpired(r *run, _ []value) error {
	total := 0
	for range maxSweeps {
		n, err := r.srv.sessions.DeleteExpired(r.ctx, sweepBatch)
		if err != nil {
			return errorf(50000, 16, "%s", fmt.Sprintf("Expired sessions could not be deleted, which %s will do itself later.", serverName))
		}
		if total += n; n < sweepBatch {
			break
		}
	}
	r.t.done(tokenDoneInProc, doneCount, didDelete, total)
	return nil
}

// nothing is done by CreateTempTables, which has tables made in SQL Server's tempdb.
func nothing(*run, []value) error { return nil }
