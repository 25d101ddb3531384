// Package harness judges every session-state store from outside: whether concurrent
// operations are linearizable, directly and over the wire; what is left after the server
// was killed; what a full disk does. All of it is tests; a store takes part by
// its entry in stores. The program in mutants plants faults and sees that they are found.
package harness
