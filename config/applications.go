package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Application is a list of app ids that share their sessions.
type Application struct {
	Name string
	IDs  []string
}

// Applications are all such lists. As text, in the environment and in flags, they are
// "shop=/LM/W3SVC/1/ROOT,/LM/W3SVC/7/ROOT; intranet=…".
type Applications []Application

func (a Applications) String() string {
	texts := make([]string, len(a))
	for i, app := range a {
		texts[i] = app.Name + "=" + strings.Join(app.IDs, ",")
	}
	return "[" + strings.Join(texts, "; ") + "]"
}

func parseApplications(text string) (list Applications, err error) {
	text = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(text), "["), "]")
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, ids, ok := strings.Cut(part, "=")
		if !ok {
			return nil, fmt.Errorf("%q has no =", part)
		}
		app := Application{Name: strings.TrimSpace(name)}
		for id := range strings.SplitSeq(ids, ",") {
			if id = strings.TrimSpace(id); id != "" {
				app.IDs = append(app.IDs, id)
			}
		}
		list = append(list, app)
	}
	return list, nil
}

// readApplications reads what viper found in a file: a list of names with their ids.
func readApplications(raw []any) (list Applications, err error) {
	for _, e := range raw {
		group, ok := e.(map[string]any)
		if !ok {
			return nil, errors.New("its list holds something other than applications")
		}
		var app Application
		for key, value := range group {
			switch {
			case strings.EqualFold(key, "name"):
				if app.Name, ok = scalar(value); !ok {
					return nil, errors.New("the name of an application is not text")
				}
			case strings.EqualFold(key, "ids"):
				ids, isList := value.([]any)
				if !isList {
					ids = []any{value}
				}
				for _, id := range ids {
					text, ok := scalar(id)
					if !ok {
						return nil, errors.New("an app id is not text")
					}
					app.IDs = append(app.IDs, text)
				}
			default:
				return nil, fmt.Errorf("an application has no %q", key)
			}
		}
		list = append(list, app)
	}
	return list, nil
}

func (l *loader) validateApplications(c *Config) {
	const key, remedy = "applications", "write - {name: shop, ids: [/LM/W3SVC/1/ROOT, /LM/W3SVC/7/ROOT]}"
	names, ids := map[string]bool{}, map[string]string{}
	for _, app := range c.Applications {
		l.check(app.Name != "", key, "an application has no name", remedy)
		l.check(!strings.ContainsAny(app.Name, "/()<>,;=") && len(app.Name) <= 100, key,
			strconv.Quote(app.Name)+" cannot be a name", "write at most 100 letters, without / ( ) < > , ; and =")
		l.check(!names[app.Name], key, strconv.Quote(app.Name)+" is there twice", "write all its ids in one list")
		l.check(len(app.IDs) > 0, key, app.Name+" has no ids", remedy)
		names[app.Name] = true
		for _, id := range app.IDs {
			lower := strings.ToLower(id)
			other, twice := ids[lower]
			l.check(!twice, key, id+" is there twice, in "+other+" and "+app.Name, "an app id belongs to one application: remove it from one")
			ids[lower] = app.Name
		}
	}
}
