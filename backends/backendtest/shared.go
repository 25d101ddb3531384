package backendtest

var sharedMovableCases = []testCase{}
