package tds

import (
	"fmt"
	"regexp"
	"strings"
)

// executeSQL is the procedure by which drivers run text with parameters.
const executeSQL = "sp_executesql"

// batch answers a batch of text (MS-TDS 2.2.6.7).
func (r *run) batch(body []byte) error {
	in := &reader{b: body}
	in.skipHeaders()
	if in.err != nil {
		r.unreadable()
		r.refuse(errorf(8009, 16, "The batch cannot be read: %v.", in.err))
		return nil
	}
	s := &script{run: r, done: tokenDone, procDone: tokenDoneProc, variables: map[string]*variable{}}
	return s.execute(utf16String(in.b))
}

// executeSQL answers sp_executesql: a batch with parameters.
func (r *run) executeSQL(call rpc) error {
	statement, s, fault := r.withParameters(call.parameters)
	if fault != nil {
		r.unreadable()
		r.t.fail(fault, executeSQL)
		r.t.done(tokenDoneProc, doneError, didNothing, 0)
		return nil
	}
	if err := s.execute(statement); err != nil {
		return err
	}
	r.t.returnStatus(0)
	for at, p := range call.parameters {
		if at < 2 || !p.output {
			continue
		}
		name := p.name
		if name == "" && at-2 < len(s.declared) {
			name = s.declared[at-2]
		}
		v, ok := s.variables[strings.ToLower(name)]
		if !ok {
			continue
		}
		if s.exceeds(v.value) {
			r.t.fail(errAnswerTooLarge, executeSQL)
			r.t.done(tokenDoneProc, doneError, didNothing, 0)
			return nil
		}
		r.t.returnValue(at, p.name, v.typ, v.value)
	}
	r.t.done(tokenDoneProc, 0, didExecute, 0)
	return nil
}

// withParameters reads the arguments of sp_executesql: the statement, the declaration of its parameters, and their values.
func (r *run) withParameters(arguments []parameter) (statement string, s *script, fault *sqlError) {
	s = &script{run: r, done: tokenDoneInProc, procDone: tokenDoneInProc, variables: map[string]*variable{}}
	if len(arguments) == 0 || arguments[0].value.kind != kindText {
		return "", nil, errorf(214, 16, "Procedure expects parameter '@statement' of type 'ntext/nchar/nvarchar'.")
	}
	if len(arguments) > 1 && arguments[1].value.kind == kindText {
		words, err := lex(arguments[1].value.s)
		if err != nil {
			return "", nil, errorf(102, 15, "The declaration of parameters cannot be read: %v.", err)
		}
		p := &parser{words: words, script: s}
		for p.peek().kind != wordEnd && p.err == nil {
			p.declaration()
			p.accept("OUTPUT")
			p.accept("OUT")
			if !p.accept(",") {
				break
			}
		}
		if p.err != nil || p.peek().kind != wordEnd {
			return "", nil, errorf(102, 15, "The declaration of parameters cannot be read.")
		}
	}
	for at := 2; at < len(arguments); at++ {
		name := arguments[at].name
		if name == "" && at-2 < len(s.declared) {
			name = s.declared[at-2]
		}
		v, ok := s.variables[strings.ToLower(name)]
		if !ok {
			return "", nil, errorf(8145, 16, "%s is not a parameter of the statement.", cut(name, 128))
		}
		if v.value, ok = arguments[at].value.as(v.kind); !ok {
			return "", nil, errorf(8114, 16, "Error converting the value of %s to its type.", cut(name, 128))
		}
	}
	return arguments[0].value.s, s, nil
}

// script is a batch that consists of what is served here: DECLARE, calls of procedures, SELECT of variables, and options of the connection.
type script struct {
	run            *run
	done, procDone byte // the tokens that end a statement and a procedure
	variables      map[string]*variable
	declared       []string // their names in order
}

type variable struct {
	kind  kind
	typ   columnType
	value value
}

var (
	// The in-box client looks whether the procedures are there.
	probeProcedures = regexp.MustCompile(`(?i)^\s*select\s+name\s+from\s+sysobjects\s+where\s+type\s*=\s*'P'\s+and\s+name\s*=\s*'(\w+)'\s*;?\s*$`)
	// The provider from NuGet asks which kind of table there is.
	probeTables = regexp.MustCompile(`(?i)SELECT\s+@tableType\s*,\s*@isMemoryOpt\s*;?\s*(END\s*;?\s*)?$`)
)

// What the second probe wants to hear: the table of aspnet_regsql, not in memory.
const (
	tableOfRegsql = 2
	notInMemory   = 0
)

// longestProbe keeps the patterns away from long texts.
const longestProbe = 16 << 10

// execute carries out a text, or refuses it as a whole.
func (s *script) execute(text string) error {
	t := &s.run.t
	if len(text) <= longestProbe {
		if m := probeProcedures.FindStringSubmatch(text); m != nil {
			s.procedureExists(m[1])
			return nil
		}
		if probeTables.MatchString(text) {
			t.columns(column{"", columnInt}, column{"", columnInt})
			t.rowToken()
			t.value(columnInt, integer(tableOfRegsql))
			t.value(columnInt, integer(notInMemory))
			t.done(s.done, doneCount, didSelect, 1)
			return nil
		}
	}
	statements, err := parse(s, text)
	if err != nil {
		s.run.unreadable()
		t.fail(errorf(208, 16, "%s", onlyProcedures("The statement is not served: "+err.Error()+".")), "")
		t.done(s.done, doneError, didNothing, 0)
		return nil
	}
	before := len(t.b)
	for _, do := range statements {
		if s.exceeds() {
			s.refuseAnswer()
			break
		}
		if err := do(); err != nil {
			return err
		}
	}
	if len(t.b) == before { // there is nothing but DECLARE, which says nothing
		t.done(s.done, 0, didNothing, 0)
	}
	return nil
}

// exceeds reports whether the answer, with these values, is larger than any request may be: a short text can ask for one item, or for one
// of its variables, any number of times.
func (s *script) exceeds(more ...value) bool {
	n := len(s.run.t.b)
	for _, v := range more {
		n += len(v.b) + len(v.s)
	}
	return int64(n) > maxMessage*s.run.settings.Body+messageOverhead
}

var errAnswerTooLarge = errorf(50001, 16, "The answer is much larger than limits.body of %s.", serverName)

func (s *script) refuseAnswer() {
	s.run.t.fail(errAnswerTooLarge, "")
	s.run.t.done(s.done, doneError, didNothing, 0)
}

func (s *script) procedureExists(name string) {
	t := &s.run.t
	t.columns(column{"name", columnText})
	rows := 0
	if p := procedures[strings.ToLower(name)]; p != nil {
		t.rowToken()
		t.value(columnText, value{kind: kindText, s: p.name})
		rows = 1
	}
	t.done(s.done, doneCount, didSelect, rows)
}

// statement carries out one statement.
type statement func() error

// parser reads statements. After a failure it goes no further; err tells.
type parser struct {
	words  []word
	script *script
	err    error
}

func parse(s *script, text string) (statements []statement, err error) {
	words, err := lex(text)
	if err != nil {
		return nil, err
	}
	p := &parser{words: words, script: s}
	for p.err == nil {
		for p.accept(";") {
		}
		if p.peek().kind == wordEnd {
			break
		}
		statements = append(statements, p.statement(len(statements) == 0))
	}
	return statements, p.err
}

func (p *parser) peek() word { return p.words[0] }

func (p *parser) next() word {
	w := p.words[0]
	if w.kind != wordEnd {
		p.words = p.words[1:]
	}
	return w
}

// accept takes the next word if it is this one.
func (p *parser) accept(text string) bool {
	if !p.peek().is(text) {
		return false
	}
	p.next()
	return true
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// options are those of a connection that change nothing here; drivers set them.
var options = map[string]bool{
	"ansi_defaults": true, "ansi_null_dflt_on": true, "ansi_nulls": true, "ansi_padding": true, "ansi_warnings": true, "arithabort": true,
	"concat_null_yields_null": true, "cursor_close_on_commit": true, "datefirst": true, "dateformat": true, "deadlock_priority": true,
	"implicit_transactions": true, "language": true, "lock_timeout": true, "nocount": true, "numeric_roundabort": true,
	"quoted_identifier": true, "textsize": true, "transaction": true, "xact_abort": true,
}

func (p *parser) statement(first bool) statement {
	switch w := p.peek(); {
	case p.accept("DECLARE"):
		for p.declaration(); p.accept(","); {
			p.declaration()
		}
		return func() error { return nil }
	case p.accept("SET"):
		if option := p.next(); option.kind != wordName || !options[strings.ToLower(option.text)] {
			p.fail("SET %s", cut(option.text, 30))
		}
		for !startsStatement(p.peek()) {
			p.next()
		}
		return func() error {
			p.script.run.t.done(p.script.done, 0, didNothing, 0)
			return nil
		}
	case p.accept("SELECT"):
		return p.selection()
	case p.accept("EXEC"), p.accept("EXECUTE"), first && p.isCall():
		return p.execution()
	default:
		p.fail("it begins with %q", cut(w.text, 30))
		return nil
	}
}

// isCall reports whether a procedure's name is next, which may stand without EXEC at the beginning of a batch.
func (p *parser) isCall() bool {
	name, _ := p.fullName()
	return p.peek().kind == wordName && procedures[strings.ToLower(name)] != nil
}

func startsStatement(w word) bool {
	return w.kind == wordEnd || w.is(";") || w.is("SET") || w.is("EXEC") || w.is("EXECUTE") || w.is("SELECT") || w.is("DECLARE")
}

// declaration reads "@name type" and, perhaps, "= value".
func (p *parser) declaration() {
	name := p.next()
	if name.kind != wordVariable {
		p.fail("a variable's name is missing")
		return
	}
	p.accept("AS")
	v := &variable{}
	typ := p.next()
	switch strings.ToLower(typ.text) {
	case "int", "bigint", "smallint", "tinyint":
		v.kind, v.typ = kindInt, columnInt
	case "bit":
		v.kind, v.typ = kindBit, columnBit
	case "char", "nchar", "varchar", "nvarchar", "ntext", "text", "sysname":
		v.kind, v.typ = kindText, columnText
	case "binary", "varbinary", "image":
		v.kind, v.typ = kindBinary, columnLong
	case "datetime":
		v.kind, v.typ = kindDateTime, columnDateTime
	default:
		p.fail("type %q", cut(typ.text, 30))
		return
	}
	if p.accept("(") {
		for !p.accept(")") {
			if p.next().kind == wordEnd {
				p.fail("a ) is missing")
				return
			}
		}
	}
	v.value = value{kind: v.kind, null: true}
	if p.accept("=") {
		assigned, ok := p.expression()().as(v.kind)
		if !ok {
			p.fail("a value does not have its variable's type")
		}
		v.value = assigned
	}
	key := strings.ToLower(name.text)
	if p.script.variables[key] != nil {
		p.fail("%s is declared twice", cut(name.text, 30))
		return
	}
	p.script.variables[key] = v
	p.script.declared = append(p.script.declared, name.text)
}

// expression reads a literal or a variable, and returns what gives its value when the time has come.
func (p *parser) expression() func() value {
	switch w := p.next(); {
	case w.kind == wordLiteral:
		return func() value { return w.value }
	case w.is("NULL"):
		return func() value { return value{null: true} }
	case w.is("-") && p.peek().kind == wordLiteral && p.peek().value.kind == kindInt:
		n := p.next().value.n
		return func() value { return integer(-n) }
	case w.kind == wordVariable && strings.EqualFold(w.text, "@@VERSION"):
		return func() value { return text(onlyProcedures(serverName + ".")) }
	case w.kind == wordVariable:
		v := p.script.variables[strings.ToLower(w.text)]
		if v == nil {
			p.fail("%s is not declared", cut(w.text, 30))
			break
		}
		return func() value { return v.value }
	default:
		p.fail("%q is neither a literal nor a variable", cut(w.text, 30))
	}
	return func() value { return value{null: true} }
}

// maxColumns is SQL Server's own limit.
const maxColumns = 4096

// selection reads what follows SELECT: literals and variables, perhaps named.
func (p *parser) selection() statement {
	var columns []column
	var values []func() value
	for {
		c := column{typ: columnText}
		if w := p.peek(); w.kind == wordVariable && p.script.variables[strings.ToLower(w.text)] != nil {
			c.typ = p.script.variables[strings.ToLower(w.text)].typ
		} else if w.kind == wordLiteral && w.value.kind == kindInt || w.is("-") || w.is("NULL") {
			c.typ = columnInt
		} else if w.kind == wordLiteral && w.value.kind == kindBinary {
			c.typ = columnLong
		}
		values = append(values, p.expression())
		if p.accept("AS") {
			name := p.next()
			if c.name = name.text; name.kind != wordName {
				p.fail("a column's name is missing")
			}
		} else if w := p.peek(); w.kind == wordName && !startsStatement(w) {
			c.name = p.next().text
		}
		if columns = append(columns, c); len(columns) > maxColumns {
			p.fail("more than %d columns", maxColumns)
		}
		if p.err != nil || !p.accept(",") {
			break
		}
	}
	if !startsStatement(p.peek()) {
		p.fail("tables cannot be read")
	}
	s := p.script
	return func() error {
		t := &s.run.t
		row := make([]value, len(values))
		for i, v := range values {
			row[i] = v()
		}
		if s.exceeds(row...) {
			s.refuseAnswer()
			return nil
		}
		t.columns(columns...)
		t.rowToken()
		for i, v := range row {
			t.value(columns[i].typ, v)
		}
		t.done(s.done, doneCount, didSelect, 1)
		return nil
	}
}

// fullName reads the name of a procedure without taking it: its last part, and how many words it has.
func (p *parser) fullName() (name string, words int) {
	name, words = p.words[0].text, 1
	for words < len(p.words) && p.words[words].is(".") {
		if words++; words < len(p.words) && p.words[words].kind == wordName {
			name = p.words[words].text
			words++
		}
	}
	return name, words
}

// execution reads what follows EXEC: perhaps a variable for the status, a name, and arguments.
func (p *parser) execution() statement {
	s := p.script
	var status *variable
	if w := p.peek(); w.kind == wordVariable {
		p.next()
		if status = s.variables[strings.ToLower(w.text)]; status == nil || status.kind != kindInt {
			p.fail("%s is not declared as int", cut(w.text, 30))
		}
		if !p.accept("=") {
			p.fail("only procedures can be called")
		}
	}
	if p.peek().kind != wordName {
		p.fail("a procedure's name is missing")
	}
	name, n := p.fullName()
	p.words = p.words[min(n, len(p.words)-1):]
	call := rpc{name: name}
	outputs := map[int]*variable{}
	var values []func() value
	for !startsStatement(p.peek()) {
		var a parameter
		if w := p.peek(); w.kind == wordVariable && len(p.words) > 1 && p.words[1].is("=") {
			a.name = w.text
			p.next()
			p.next()
		}
		variable := p.script.variables[strings.ToLower(p.peek().text)]
		if a.unset = p.accept("DEFAULT"); a.unset {
			values = append(values, func() value { return value{null: true} })
		} else {
			values = append(values, p.expression())
		}
		if p.accept("OUTPUT") || p.accept("OUT") {
			if variable == nil {
				p.fail("only a variable can be OUTPUT")
			}
			a.output = true
			outputs[len(call.parameters)] = variable
		}
		call.parameters = append(call.parameters, a)
		if !p.accept(",") {
			break
		}
	}
	if !startsStatement(p.peek()) {
		p.fail("there is something behind the arguments")
	}
	return func() error {
		for i, v := range values {
			call.parameters[i].value = v()
		}
		if err := s.run.call(procedures[strings.ToLower(call.name)], call, s.procDone, false); err != nil {
			return err
		}
		for i, v := range outputs {
			if converted, ok := call.parameters[i].value.as(v.kind); ok {
				v.value = converted
			}
		}
		if status != nil {
			status.value = integer(0)
		}
		return nil
	}
}
