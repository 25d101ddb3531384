package sqlite

import (
	"strings"

	"aspstate/backends"
)

// cache holds sessions as they are in the writer's transaction. Nobody else changes the file, so what the writer has read or
// written stays true: the second request of a page, and the next page, find their session and its item here, and SQLite is asked
// only to write. A transaction that fails, and another program that writes to the file all the same, empty it.
type cache struct {
	young, old map[backends.Key]*session // old is given up when young is full
	bytes      int                       // of young
	version    int64                     // of the file: changes when another connection writes
}

const (
	cacheBytes = 32 << 20 // of each of the two
	cacheItem  = 64 << 10 // longer items are not kept
	cacheEntry = 256      // bytes besides ID and item, about
)

func (c *cache) clear() { c.young, c.old, c.bytes = make(map[backends.Key]*session), nil, 0 }

// get returns a session, or nil if it is not here. Changes to it are changes to what is here.
func (c *cache) get(key backends.Key) *session {
	if se := c.young[key]; se != nil {
		return se
	}
	se := c.old[key]
	if se != nil {
		delete(c.old, key)
		c.put(key, se)
	}
	return se
}

func (c *cache) put(key backends.Key, se *session) {
	key.ID = strings.Clone(key.ID) // it may be part of something larger
	c.young[key] = se
	c.grow(weight(key, se))
}

// grow counts bytes of young, and makes it old where they are too many.
func (c *cache) grow(bytes int) {
	if c.bytes += bytes; c.bytes > cacheBytes {
		c.old, c.young, c.bytes = c.young, make(map[backends.Key]*session, len(c.young)), 0
	}
}

// keep gives a session that was just got or put an item, which nobody changes from then on.
func (c *cache) keep(se *session, item []byte) {
	if len(item) > cacheItem {
		item = nil
	}
	more := len(item) - len(se.item)
	se.item = item
	c.grow(more)
}

func (c *cache) drop(key backends.Key) {
	if se := c.young[key]; se != nil {
		c.bytes -= weight(key, se)
		delete(c.young, key)
	}
	delete(c.old, key)
}

func weight(key backends.Key, se *session) int { return cacheEntry + len(key.ID) + len(se.item) }

// find finds a session; the zero session is a missing one.
func (w *writer) find(key backends.Key) (*session, error) {
	if se := w.cache.get(key); se != nil {
		return se, nil
	}
	se, err := find(w.findSession, key, false)
	if err == nil && se.row != 0 {
		w.cache.put(key, &se)
	}
	return &se, err
}

// findItem finds a session and, if it is unlocked, its item.
func (w *writer) findItem(key backends.Key) (se *session, item []byte, err error) {
	if se = w.cache.get(key); se == nil {
		se = new(session)
		if *se, err = find(w.findWhole, key, true); err != nil || se.row == 0 {
			return se, nil, err
		}
		item, se.item = se.item, nil
		w.cache.put(key, se)
	} else if item = se.item; item == nil && !se.locked {
		if item, err = w.itemOf(se.row); err != nil {
			return se, nil, err
		}
	}
	w.cache.keep(se, item)
	return se, item, nil
}

func (w *writer) itemOf(row int64) ([]byte, error) {
	defer w.readItem.reset()
	w.readItem.bindInt(1, row)
	if _, err := w.readItem.step(); err != nil {
		return nil, err
	}
	return w.readItem.blob(0)
}

// refresh empties the cache if another connection has written to the file.
func (w *writer) refresh() error {
	defer w.dataVersion.reset()
	if _, err := w.dataVersion.step(); err != nil {
		return err
	}
	if version := w.dataVersion.int(0); version != w.cache.version {
		w.cache.clear()
		w.cache.version = version
	}
	return nil
}
