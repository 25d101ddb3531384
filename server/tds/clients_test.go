package tds

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Clients that we did not write, which are not in Go. They take long and must be installed; make test-all does both.

// plainPassword is one that needs no quotes anywhere.
const plainPassword = "Right-0815"

func startForClients(t *testing.T, programs map[string]string) (f *front, host, port string) {
	t.Helper()
	if os.Getenv("ASPSTATE_TEST_LONG") == "" {
		t.Skip("clients in other languages run with ASPSTATE_TEST_LONG=1 (make test-all)")
	}
	for program, remedy := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is missing: install %s", program, remedy)
		}
	}
	f = startMemory(t)
	s := testSettings(t)
	s.Users = []User{{testUser, quick(t, plainPassword)}}
	f.Configure(s)
	host, port, _ = net.SplitHostPort(f.address)
	return f, host, port
}

// output runs a program and returns what it writes; failing is a failure of the test.
func output(t *testing.T, cmd *exec.Cmd, stdin string) string {
	t.Helper()
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", filepath.Base(cmd.Path), err, out)
	}
	return string(out)
}

func TestSystemDataSqlClient(t *testing.T) {
	_, host, port := startForClients(t, map[string]string{"mono": "mono-runtime, libmono-system-data4.0-cil and libmono-i18n-west4.0-cil", "mcs": "mono-mcs"})
	program := filepath.Join(t.TempDir(), "suite.exe")
	output(t, exec.Command("mcs", "-out:"+program, "-r:System.Data.dll", "testdata/clients/suite.cs"), "")
	source := "Data Source=" + host + "," + port
	login := source + ";User ID=" + testUser + ";Password="
	out := output(t, exec.Command("mono", program, login+plainPassword+";Initial Catalog=ASPState", login+"wrong;Initial Catalog=ASPState",
		login+plainPassword+";Initial Catalog=master", login+plainPassword+";Initial Catalog=ASPState;Encrypt=true;TrustServerCertificate=true"), "")
	if !strings.HasSuffix(strings.TrimSpace(out), "passed") {
		t.Errorf("the client says:\n%s", out)
	}
}

func TestTedious(t *testing.T) {
	_, host, port := startForClients(t, map[string]string{"node": "nodejs", "npm": "npm"})
	folder := t.TempDir()
	output(t, exec.Command("npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", "tedious@18.6.1"), "")
	script, err := os.ReadFile("testdata/clients/suite.js")
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "suite.js"), script, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	out := output(t, exec.Command("node", filepath.Join(folder, "suite.js"), host, port, testUser, plainPassword), "")
	if !strings.HasSuffix(strings.TrimSpace(out), "passed") {
		t.Errorf("the client says:\n%s", out)
	}
}

// FreeTDS sends text.
func TestFreeTDS(t *testing.T) {
	f, host, port := startForClients(t, map[string]string{"tsql": "freetds-bin", "bsqldb": "freetds-bin"})
	for _, version := range []string{"7.2", "7.3", "7.4"} {
		for _, encryption := range []string{"off", "request", "require"} {
			t.Run(version+"/"+encryption, func(t *testing.T) {
				conf := filepath.Join(t.TempDir(), "freetds.conf")
				text := fmt.Sprintf("[global]\ntext size = 16777216\n[front]\nhost = %s\nport = %s\ntds version = %s\nencryption = %s\n", host, port, version, encryption)
				if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				tsql := func(password, database, input string) string {
					cmd := exec.Command("tsql", "-S", "front", "-U", testUser, "-P", password, "-D", database, "-o", "q")
					cmd.Env = append(os.Environ(), "FREETDSCONF="+conf)
					cmd.Stdin = strings.NewReader(input)
					var out, errors strings.Builder
					cmd.Stdout, cmd.Stderr = &out, &errors
					cmd.Run() // its exit code says that some statement failed
					return out.String() + errors.String()
				}
				id := "freetds" + version + encryption + suffixOf(t, f.open(t, testUser, plainPassword, "encrypt=disable"), testApp)
				large := strings.Repeat("0123456789abcdef", 1<<17) // 1 MB in hexadecimal
				out := tsql(plainPassword, "ASPState", "EXEC dbo.TempInsertStateItemLong '"+id+"', 0x"+large+", 20\ngo\n"+
					"DECLARE @s varbinary(7000), @l bit, @a int, @c int, @f int\n"+
					"EXEC dbo.TempGetStateItemExclusive3 '"+id+"', @s OUTPUT, @l OUTPUT, @a OUTPUT, @c OUTPUT, @f OUTPUT\n"+
					"SELECT 'locked', @l, 'age', @a, 'cookie', @c, 'flags', @f\ngo\n"+
					"EXEC TempInsertStateItemShort '"+id+"', 0x01, 20\ngo\n"+
					"EXEC TempUpdateStateItemShortNullLong '"+id+"', 0x0a0b0c, 20, 2\ngo\n"+
					"SELECT * FROM ASPStateTempSessions\ngo\nquit\n")
				for _, want := range []string{large, "locked\t0\tage\t0\tcookie\t2\tflags\t0", "Msg 2627", "which serves only session-state procedures"} {
					if !strings.Contains(out, want) {
						t.Errorf("no %.50q (%d letters) in %.300s … %s (%d letters)", want, len(want), out, out[max(0, len(out)-1000):], len(out))
					}
				}
				cmd := exec.Command("bsqldb", "-S", "front", "-U", testUser, "-P", plainPassword, "-D", "ASPState", "-q")
				cmd.Env = append(os.Environ(), "FREETDSCONF="+conf)
				out = output(t, cmd, "DECLARE @s varbinary(7000), @l bit, @a int, @c int, @f int\n"+
					"EXEC dbo.TempGetStateItem3 '"+id+"', @s OUTPUT, @l OUTPUT, @a OUTPUT, @c OUTPUT, @f OUTPUT\nSELECT @s, @c\ngo\n")
				if !strings.Contains(strings.ToLower(out), "0a0b0c") {
					t.Errorf("bsqldb says %s", out)
				}
				for _, refused := range [][3]string{{"wrong", "ASPState", "Msg 18456"}, {plainPassword, "master", "Msg 4060"}} {
					if out := tsql(refused[0], refused[1], "quit\n"); !strings.Contains(out, refused[2]) {
						t.Errorf("no %s in %s", refused[2], out)
					}
				}
			})
		}
	}
}
