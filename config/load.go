package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

const envPrefix = "ASPSTATE_"

// Fault is one thing that is wrong with the settings.
type Fault struct {
	Key     string // of the setting
	Source  string // where its value was found, "" for a default
	Problem string
	Remedy  string
}

func (f Fault) Error() string {
	where := f.Key
	if f.Source != "" {
		where += " (" + f.Source + ")"
	}
	return where + ": " + f.Problem + "; " + f.Remedy
}

// AddFlags adds a flag for each setting, or for those with the given keys.
func AddFlags(flags *pflag.FlagSet, keys ...string) {
	for _, s := range settings {
		if len(keys) > 0 && !slices.Contains(keys, s.key) {
			continue
		}
		v := &flagValue{text: s.def}
		switch s.of(&Config{}).Interface().(type) {
		case bool:
			v.kind = "bool"
		case int:
			v.kind = "number"
		case Size:
			v.kind = "size"
		case time.Duration:
			v.kind = "duration"
		case []string, []netip.Prefix, Users, EncryptionKeys:
			v.kind = "list"
		default:
			v.kind = "text"
		}
		f := flags.VarPF(v, s.flag, "", s.doc)
		if v.kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// flagValue keeps a flag's text; Load reads it as it reads the file's values.
type flagValue struct {
	text, kind string
	given      bool
}

func (v *flagValue) String() string { return v.text }
func (v *flagValue) Type() string   { return v.kind }

// Set takes the text; a list may also be given as the same flag several times.
func (v *flagValue) Set(text string) error {
	if v.given && v.kind == "list" {
		text = v.text + "," + text
	}
	v.text, v.given = text, true
	return nil
}

// Load reads the settings: flags before environment before file before
// defaults. file may be "", environ is what os.Environ returns, and flags (nil for none)
// are those of AddFlags. Each call reads everything anew.
//
// Load reports all faults at once: its error is a joined list of Fault.
// Variables that look like settings and are none only cause a warning, because
// orchestrators set such variables themselves (ASPSTATE_SERVICE_HOST, ASPSTATE_PORT).
func Load(file string, environ []string, flags *pflag.FlagSet) (*Config, error) {
	var data []byte
	if file != "" {
		var err error
		if data, err = os.ReadFile(file); err != nil {
			return nil, errors.Join(Fault{Key: "--config", Problem: err.Error(), Remedy: "name a file that can be read"})
		}
	}
	return load(file, data, environ, flags)
}

// loader is one pass over all sources.
type loader struct {
	file   string
	env    map[string]string
	lines  map[string]int // of the file's settings, by key
	source map[string]string
	faults []error
	// unreadable are the keys whose values could not be read: each has its fault, and
	// is not judged further.
	unreadable map[string]bool
}

func load(file string, data []byte, environ []string, flags *pflag.FlagSet) (*Config, error) {
	l := &loader{file: filepath.Base(file), env: map[string]string{}, lines: map[string]int{},
		source: map[string]string{}, unreadable: map[string]bool{}}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			l.env[name] = value
		}
	}
	v := viper.New()
	if !l.readFile(v, data) {
		return nil, errors.Join(l.faults...)
	}
	upper := map[string]string{} // Windows keeps the case a variable was set in
	for name, value := range l.env {
		upper[strings.ToUpper(name)] = value
	}
	c := &Config{sources: l.source}
	for _, s := range settings {
		v.SetDefault(s.key, s.def)
		if line := l.lines[s.key]; line > 0 {
			l.source[s.key] = l.file + " line " + strconv.Itoa(line)
		}
		// Set puts a value above the file's. Empty variables count as unset:
		// container files often cannot leave one out.
		if text := upper[s.env]; text != "" {
			v.Set(s.key, text)
			l.source[s.key] = s.env
		}
		if flags != nil {
			if f := flags.Lookup(s.flag); f != nil && f.Changed {
				v.Set(s.key, f.Value.String())
				l.source[s.key] = "--" + s.flag
			}
		}
		before := len(l.faults)
		raw := v.Get(s.key)
		if raw != nil { // else a value stands in the place of the group, which has its fault
			l.decode(s, raw, s.of(c))
		}
		l.unreadable[s.key] = raw == nil || len(l.faults) > before
	}
	l.resolve(c, filepath.Dir(file))
	l.resolveAdmin(c, filepath.Dir(file))
	l.resolveEncryption(c, filepath.Dir(file))
	l.resolveFiles(c, filepath.Dir(file))
	l.validate(c)
	c.Warnings = append(c.Warnings, l.strangers(c)...)
	if len(l.faults) > 0 {
		return nil, errors.Join(l.faults...)
	}
	return c, nil
}

func (l *loader) fault(key, problem, remedy string) {
	l.faults = append(l.faults, Fault{Key: key, Source: l.source[key], Problem: problem, Remedy: remedy})
}

// readFile gives the file to viper and checks its keys, which viper would not.
// It returns false if the file cannot be understood at all.
func (l *loader) readFile(v *viper.Viper, data []byte) bool {
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		if parse, ok := errors.AsType[viper.ConfigParseError](err); ok {
			err = parse.Unwrap()
		}
		l.faults = append(l.faults, Fault{Key: l.file, Problem: "cannot be read as YAML: " + err.Error(),
			Remedy: "write one \"key: value\" a line, as in config/example.yaml"})
		return false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil { // io.EOF: nothing but comments
		return true
	}
	l.checkKeys(&doc, "")
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		l.faults = append(l.faults, Fault{Key: l.file, Problem: "there is more than one YAML document in it",
			Remedy: "remove the line --- and what follows"})
	}
	return true
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// checkKeys notes the line of every setting under node, and finds the keys that
// are none or stand there twice (viper, which ignores case, would take either).
func (l *loader) checkKeys(node *yaml.Node, prefix string) {
	switch node.Kind {
	case yaml.DocumentNode:
		for _, n := range node.Content {
			l.checkKeys(n, prefix)
		}
		return
	case yaml.AliasNode:
		l.checkKeys(node.Alias, prefix)
		return
	case yaml.MappingNode:
	default:
		if group := strings.TrimSuffix(prefix, "."); group != "" && node.Tag != "!!null" {
			l.faults = append(l.faults, Fault{Key: group, Source: l.at(node.Line), Problem: "it is a group of settings, not a value",
				Remedy: "write its settings below it: " + strings.Join(keysIn(prefix), ", ")})
		}
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		key := prefix + name.Value
		lower := strings.ToLower(key)
		if !plainKey.MatchString(key) {
			key = strconv.Quote(key)
		}
		if seen[lower] {
			l.faults = append(l.faults, Fault{Key: key, Source: l.at(name.Line), Problem: "the key is there twice", Remedy: "remove one"})
			continue
		}
		seen[lower] = true
		s := slices.IndexFunc(settings, func(s setting) bool { return strings.ToLower(s.key) == lower })
		if s >= 0 && !strings.Contains(name.Value, ".") {
			l.lines[settings[s].key] = name.Line
			continue
		}
		if len(keysIn(key+".")) > 0 {
			l.checkKeys(value, key+".")
			continue
		}
		f := Fault{Key: key, Source: l.at(name.Line), Problem: "unknown key", Remedy: "the keys here are " + strings.Join(keysIn(prefix), ", ")}
		if full := namesake(name.Value); full != "" {
			f.Remedy = "did you mean " + full + "?"
		}
		l.faults = append(l.faults, f)
	}
}

func (l *loader) at(line int) string { return l.file + " line " + strconv.Itoa(line) }

// keysIn lists the keys directly below prefix, without it.
func keysIn(prefix string) []string {
	var keys []string
	for _, s := range settings {
		if rest, ok := cutPrefixFold(s.key, prefix); ok {
			if key, _, _ := strings.Cut(rest, "."); !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// namesake finds a setting of the same name in another group.
func namesake(name string) string {
	for _, s := range settings {
		if strings.EqualFold(s.key[strings.LastIndex(s.key, ".")+1:], name) {
			return s.key
		}
	}
	return ""
}

// decode puts what viper found into the setting's field.
func (l *loader) decode(s setting, raw any, field reflect.Value) {
	list, isList := raw.([]any)
	var err error
	switch p := field.Addr().Interface().(type) {
	case *Applications:
		if *p, err = readList(raw, readApplications, parseApplications); err != nil {
			l.fault(s.key, err.Error(), "write - {name: shop, ids: [/LM/W3SVC/1/ROOT, /LM/W3SVC/7/ROOT]}")
		}
		return
	case *ApplicationQuotas:
		if *p, err = readList(raw, readQuotas, parseQuotas); err != nil {
			l.fault(s.key, err.Error(), "write - {name: /LM/W3SVC/1/ROOT, item: 1MiB, sessions: 10000}")
		}
		return
	}
	texts := make([]string, 0, len(list))
	for _, e := range list {
		text, ok := scalar(e)
		if !ok {
			l.fault(s.key, "its list holds something other than text", "write a plain list, such as [a, b]")
			return
		}
		texts = append(texts, text)
	}
	switch p := field.Addr().Interface().(type) {
	case *[]string, *[]netip.Prefix, *Users, *EncryptionKeys:
		if !isList {
			text, ok := scalar(raw)
			if !ok {
				l.fault(s.key, "it is neither text nor a list", "write a plain list, such as [a, b]")
				return
			}
			for e := range strings.SplitSeq(text, ",") {
				if e = strings.TrimSpace(e); e != "" {
					texts = append(texts, e)
				}
			}
		}
		switch out := p.(type) {
		case *[]string:
			*out = texts
		case *Users:
			*out = texts
		case *EncryptionKeys:
			for _, from := range texts {
				*out = append(*out, EncryptionKey{From: from})
			}
		case *[]netip.Prefix:
			*out = l.prefixes(s.key, texts)
		}
		return
	}
	text, ok := scalar(raw)
	if !ok {
		l.fault(s.key, "it takes one value, not a list or a group", "write "+s.key+": "+s.def+", for example")
		return
	}
	if len(s.choices) > 0 {
		i := slices.IndexFunc(s.choices, func(c string) bool { return strings.EqualFold(c, text) })
		if i < 0 {
			l.fault(s.key, strconv.Quote(text)+" is not one of its values", "write "+strings.Join(s.choices, " or "))
			return
		}
		text = s.choices[i]
	}
	var remedy string
	switch p := field.Addr().Interface().(type) {
	case *ConnectionString:
		p.text = text
	case *Secret:
		p.text = text
	case *bool:
		*p, err = strconv.ParseBool(text)
		remedy = "write true or false"
	case *int:
		*p, err = strconv.Atoi(text)
		remedy = "write a whole number, such as " + s.def
	case *Size:
		*p, err = ParseSize(text)
		remedy = "write bytes, or a whole number of KiB, MiB, GiB or TiB, such as 64MiB"
	case *time.Duration:
		*p, err = time.ParseDuration(text)
		remedy = "write a number and its unit, such as 500ms, 10s or 5m"
	case *slog.Level:
		err = p.UnmarshalText([]byte(text))
	default:
		field.SetString(text)
	}
	if err != nil {
		l.fault(s.key, strconv.Quote(text)+" cannot be read", remedy)
	}
}

// readList reads a setting that is a list in the file, and a text in the environment and in flags.
func readList[T any](raw any, read func([]any) (T, error), parse func(string) (T, error)) (list T, err error) {
	if elements, ok := raw.([]any); ok {
		return read(elements)
	}
	if text, ok := scalar(raw); ok {
		return parse(text)
	}
	return list, errors.New("it is not a list")
}

// scalar returns a single YAML value as text.
func scalar(raw any) (string, bool) {
	switch x := raw.(type) {
	case []any, map[string]any, map[any]any, nil:
		return "", false
	default:
		return fmt.Sprint(x), true
	}
}

func (l *loader) prefixes(key string, texts []string) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(text); err == nil && a.Zone() == "" {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if !p.IsValid() {
			l.fault(key, strconv.Quote(text)+" is neither an address nor a CIDR range", "write addresses such as 10.1.2.3 or ranges such as 10.1.2.0/24; names are not taken")
			continue
		}
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if p != p.Masked() {
			l.fault(key, text+" is an address and a range at once", fmt.Sprintf("write %v for the address or %v for the range", p.Addr(), p.Masked()))
			continue
		}
		list = append(list, p)
	}
	return list
}

// strangers warns of variables that look like settings and are none.
func (l *loader) strangers(c *Config) []string {
	var names []string
	for name := range l.env {
		known := slices.ContainsFunc(settings, func(s setting) bool { return s.env == strings.ToUpper(name) })
		if strings.HasPrefix(strings.ToUpper(name), envPrefix) && !known && !c.readFrom("env:"+name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	sort.Strings(names)
	return []string{"no setting of this version, so without effect: " + strings.Join(names, ", ")}
}
