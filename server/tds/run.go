package tds

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"aspstate/server"
)

// run carries out one request. Its errors are the store's failures; what is wrong with the request is part of
// the answer.
type run struct {
	*conn
	ctx context.Context
	ask server.Request
}

// onlyProcedures says what is served, behind what is wrong.
func onlyProcedures(what string) string {
	return what + " This is " + serverName + ", which serves only session-state procedures: TempGetAppID, TempGetStateItem3, " +
		"TempGetStateItemExclusive3, TempUpdateStateItemLong and the others of ASPState, called by name or with EXEC."
}

// unreadable counts a request that is none of what is served.
func (r *run) unreadable() {
	r.srv.sessions.Metrics.Request(server.TDS, server.OpUnreadable, server.AnswerBad, time.Since(r.ask.Arrived))
}

// rpc answers a remote procedure call.
func (r *run) rpc(body []byte) error {
	call, err := parseRPC(body)
	if err != nil {
		r.unreadable()
		if _, unknown := errors.AsType[errorUnknownID](err); unknown {
			r.refuse(errorf(2812, 16, "%s", onlyProcedures("Could not find "+err.Error()+".")))
		} else {
			r.refuse(errorf(8009, 16, "The call cannot be read: %v.", err))
		}
		return nil
	}
	name := procedureName(call.name)
	if name == executeSQL {
		return r.executeSQL(call)
	}
	return r.call(procedures[name], call, tokenDoneProc, true)
}

// call calls a procedure, or says that there is none if it is nil. The OUTPUT parameters are in the call's then, and in the answer if
// tell is set. done is the token that ends the procedure: DONEPROC, or DONEINPROC inside sp_executesql.
func (r *run) call(p *procedure, call rpc, done byte, tell bool) error {
	if p == nil {
		r.unreadable()
		r.t.fail(errorf(2812, 16, "%s", onlyProcedures("Could not find stored procedure '"+cut(call.name, 128)+"'.")), "")
		r.t.done(done, doneError, didNothing, 0)
		return nil
	}
	args, given, fault := p.bind(call.parameters)
	if fault != nil {
		r.unreadable()
		r.t.fail(fault, p.name)
		r.t.done(done, doneError, didNothing, 0)
		return nil
	}
	err := p.run(r, args)
	if fault, ordinary := errors.AsType[*sqlError](err); ordinary {
		r.t.fail(fault, p.name)
		r.t.done(done, doneError, didNothing, 0)
		return nil
	}
	if err != nil {
		return err
	}
	if done == tokenDoneProc {
		r.t.returnStatus(0)
	}
	for i, d := range p.parameters {
		at := given[i]
		if at < 0 || !call.parameters[at].output || !d.output {
			continue
		}
		call.parameters[at].value = args[i]
		if tell {
			// The client finds it by the name that it sent, in its own spelling.
			r.t.returnValue(at, call.parameters[at].name, d.typ, args[i])
		}
	}
	r.t.done(done, 0, didExecute, 0)
	return nil
}

// procedure is one of ASPState's.
type procedure struct {
	name       string
	parameters []declared
	// run carries it out: it appends the result sets to the answer and leaves the OUTPUT parameters in args.
	run func(r *run, args []value) error
}

// declared is a parameter as a procedure declares it. None has a default.
type declared struct {
	name   string // with its @
	kind   kind
	typ    columnType // of an OUTPUT parameter
	output bool
}

// bind finds the argument of each parameter: by name in any letter case, or by position. given[i] is
// the place of the i-th parameter's argument in the call.
func (p *procedure) bind(arguments []parameter) (args []value, given []int, fault *sqlError) {
	args, given = make([]value, len(p.parameters)), make([]int, len(p.parameters))
	for i := range given {
		given[i] = -1
	}
	for at, a := range arguments {
		i := at
		if a.name != "" {
			for i = 0; i < len(p.parameters) && !strings.EqualFold(p.parameters[i].name, a.name); i++ {
			}
			if i == len(p.parameters) {
				return nil, nil, errorf(8145, 16, "%s is not a parameter for procedure %s.", cut(a.name, 128), p.name)
			}
		}
		if i >= len(p.parameters) {
			return nil, nil, errorf(8144, 16, "Procedure or function %s has too many arguments specified.", p.name)
		}
		if given[i] >= 0 {
			return nil, nil, errorf(8143, 16, "Parameter '%s' was supplied multiple times.", p.parameters[i].name)
		}
		if a.unset {
			continue
		}
		v, fault := p.parameters[i].convert(a.value)
		if fault != nil {
			return nil, nil, fault
		}
		args[i], given[i] = v, at
	}
	for i, at := range given {
		if at < 0 {
			return nil, nil, errorf(201, 16, "Procedure or function '%s' expects parameter '%s', which was not supplied.", p.name, p.parameters[i].name)
		}
	}
	return args, given, nil
}

// convert makes a value one of the parameter's type.
func (d declared) convert(v value) (value, *sqlError) {
	converted, ok := v.as(d.kind)
	if !ok {
		return v, errorf(8114, 16, "Error converting the value of %s to its type.", d.name)
	}
	if d.kind == kindInt && (converted.n < math.MinInt32 || converted.n > math.MaxInt32) {
		return v, errorf(8115, 16, "Arithmetic overflow error converting the value of %s to data type int.", d.name)
	}
	if d.typ == columnShort && len(converted.b) > shortItem {
		converted.b = converted.b[:shortItem] // as SQL Server does
	}
	return converted, nil
}

// as converts a value, where SQL Server would do so unasked and a client of ASPState might want it.
func (v value) as(k kind) (value, bool) {
	switch {
	case v.null || v.kind == kindNone:
		return value{kind: k, null: true}, true
	case v.kind == k:
		return v, true
	case k == kindInt && v.kind == kindBit:
		return integer(v.n), true
	case k == kindBit && v.kind == kindInt:
		return bit(v.n != 0), true
	default:
		return v, false
	}
}
