package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Quotas bound what one application can put into the store.
type Quotas struct {
	Item         Size              `key:"item" default:"0" live:"true" doc:"largest session of an application, 0 for limits.body"`
	Sessions     int               `key:"sessions" default:"0" live:"true" doc:"most sessions of an application, 0 for any number"`
	Applications ApplicationQuotas `key:"applications" default:"" live:"true" doc:"quotas of single applications: /LM/W3SVC/1/ROOT=item:1MiB,sessions:10000; other=..."`
}

// ApplicationQuota is the quota of one application.
type ApplicationQuota struct {
	Name     string // an app id, in any letter case, or a name in applications
	Item     Size
	Sessions int
}

// unset stands for what a quota does not say, until it is that of all applications.
const unset = -1

// ApplicationQuotas are quotas of single applications. As text, in the environment and in flags, they are
// "/LM/W3SVC/1/ROOT=item:1MiB,sessions:10000; shop=…".
type ApplicationQuotas []ApplicationQuota

func (a ApplicationQuotas) String() string {
	texts := make([]string, len(a))
	for i, q := range a {
		texts[i] = fmt.Sprintf("%s=item:%v,sessions:%d", q.Name, q.Item, q.Sessions)
	}
	return "[" + strings.Join(texts, "; ") + "]"
}

func (q *ApplicationQuota) set(key, text string) (err error) {
	switch {
	case strings.EqualFold(key, "name"):
		q.Name = text
	case strings.EqualFold(key, "item"):
		q.Item, err = ParseSize(text)
	case strings.EqualFold(key, "sessions"):
		q.Sessions, err = strconv.Atoi(text)
	default:
		return fmt.Errorf("a quota has no %q", key)
	}
	if err != nil {
		return fmt.Errorf("%q is no value for %s", text, key)
	}
	return nil
}

func parseQuotas(text string) (list ApplicationQuotas, err error) {
	text = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(text), "["), "]")
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, limits, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%q has no =", part)
		}
		q := ApplicationQuota{Name: strings.TrimSpace(name), Item: unset, Sessions: unset}
		for limit := range strings.SplitSeq(limits, ",") {
			key, value, _ := strings.Cut(limit, ":")
			if err := q.set(strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
				return nil, err
			}
		}
		list = append(list, q)
	}
	return list, nil
}

// readQuotas reads what viper found in a file: a list of quotas.
func readQuotas(raw []any) (list ApplicationQuotas, err error) {
	for _, e := range raw {
		group, ok := e.(map[string]any)
		if !ok {
			return nil, errors.New("its list holds something other than quotas")
		}
		q := ApplicationQuota{Item: unset, Sessions: unset}
		for key, value := range group {
			text, ok := scalar(value)
			if !ok {
				return nil, fmt.Errorf("%q of a quota is not one value", key)
			}
			if err := q.set(key, text); err != nil {
				return nil, err
			}
		}
		list = append(list, q)
	}
	return list, nil
}

// validateQuotas also gives single applications what their quotas leave to that of all.
func (l *loader) validateQuotas(c *Config) {
	const key = "quotas.applications"
	q := &c.Quotas
	check := func(key string, item Size, sessions int) {
		l.check(item >= 0 && item <= 512<<20, key, fmt.Sprintf("%v is too large for an item", item), "write at most 512MiB, or 0 for limits.body")
		l.check(sessions >= 0, key, fmt.Sprintf("%d is no number of sessions", sessions), "write 0 for any number")
	}
	check("quotas.item", q.Item, 0)
	check("quotas.sessions", 0, q.Sessions)
	seen := map[string]bool{}
	for i := range q.Applications {
		a := &q.Applications[i]
		l.check(a.Name != "", key, "a quota has no name", "write - {name: /LM/W3SVC/1/ROOT, sessions: 10000}")
		l.check(!seen[strings.ToLower(a.Name)], key, strconv.Quote(a.Name)+" is there twice", "remove one")
		seen[strings.ToLower(a.Name)] = true
		for _, app := range c.Applications {
			shares := slices.ContainsFunc(app.IDs, func(id string) bool { return strings.EqualFold(id, a.Name) })
			l.check(!shares, key, a.Name+" shares its sessions with others, as "+app.Name, "write a quota for "+app.Name)
		}
		if a.Item == unset {
			a.Item = q.Item
		}
		if a.Sessions == unset {
			a.Sessions = q.Sessions
		}
		check(key, a.Item, a.Sessions)
	}
}
