package sqlite

import (
	"log/slog"
	"slices"
	"time"
)

// The log (SQLite's WAL). Commits append to it. From time to time what it holds is written back into the database file, after which
// it begins anew. That takes long where sessions are many, up to a tenth of a second, so it is done beside the writer, on a connection of its
// own. Since the log begins anew only when all of it is written back, the writer then adds what it has appended meanwhile.

const (
	writeBackPages = 8000 // 32 MB of log are written back
	writeBackMore  = 2000 // and so much more each time, while readers keep it from beginning anew
	writeBackWait  = 4000 // so much more later the writer waits, so that it does not outrun what is written back

	// longestLog is how many pages the log may have before the writer waits for readers to leave it. As a rule it begins anew
	// beside them; but while there is always one at work, it never could.
	longestLog = 17000  // 70 MB
	longerLog  = 2000   // from one try to the next
	readerWait = "100"  // milliseconds; only lists and counts take longer
	otherWait  = "5000" // for other programs that look at the file

	writeBack  = `PRAGMA wal_checkpoint(PASSIVE)`
	restartLog = `PRAGMA wal_checkpoint(RESTART)`
	emptyLog   = `PRAGMA wal_checkpoint(TRUNCATE)`
)

// writtenLog is the writer's view of its log.
type writtenLog struct {
	pages int // as of the last commit
	due   int // from so many pages on it is written back
	tried int // its pages when it was last to begin anew in spite of readers

	behind *behind
	busy   bool // behind is at work
}

// behind writes the log back beside the writer. Its goroutine works when it is asked, and answers.
type behind struct {
	conn *conn
	ask  chan struct{} // of capacity 1; closed to end it
	done chan struct{} // of capacity 1; closed when it has ended
	log  *slog.Logger
}

func newBehind(path string, log *slog.Logger) (*behind, error) {
	c, err := openConn(path, slices.Concat(filePragmas, []string{"wal_autocheckpoint = 0"})...)
	if err != nil {
		return nil, err
	}
	return &behind{conn: c, ask: make(chan struct{}, 1), done: make(chan struct{}, 1), log: log}, nil
}

// run is its goroutine.
func (b *behind) run() {
	defer close(b.done)
	var warned time.Time
	for range b.ask {
		// The second time there is little left, and less for the writer.
		for range 2 {
			if err := b.conn.exec(writeBack); err != nil && time.Since(warned) > time.Minute {
				warned = time.Now()
				b.log.Warn("the SQLite file's log could not be written back, it grows", "error", err)
			}
		}
		b.done <- struct{}{}
	}
}

// close ends it. Nobody may ask any more.
func (b *behind) close() error {
	close(b.ask)
	for range b.done {
	}
	return b.conn.close()
}

// tend has the log written back when that is due, and finishes it. It is called between transactions.
func (l *writtenLog) tend(c *conn) {
	switch {
	case l.busy && l.pages < l.due+writeBackWait:
		select {
		case <-l.behind.done:
			l.finish(c)
		default:
		}
	case l.busy:
		l.await(c)
	case l.pages < writeBackPages:
		l.due, l.tried = writeBackPages, 0
	case l.pages >= l.due:
		l.busy = true
		l.behind.ask <- struct{}{}
	}
}

// await waits until nothing is being written back beside the writer.
func (l *writtenLog) await(c *conn) {
	if l.busy {
		<-l.behind.done
		l.finish(c)
	}
}

// finish writes back what was appended while behind was at work, so that the log can begin anew, and has it do so if it has grown too long.
func (l *writtenLog) finish(c *conn) {
	l.busy = false
	c.exec(writeBack)
	l.due = max(writeBackPages, l.pages+writeBackMore)
	if l.pages >= max(longestLog, l.tried+longerLog) {
		l.tried = l.pages
		c.exec("PRAGMA busy_timeout = " + readerWait)
		c.exec(restartLog) // in vain where somebody still reads
		c.exec("PRAGMA busy_timeout = " + otherWait)
	}
}
