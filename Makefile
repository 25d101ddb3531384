# aspstate. "make" lists the targets; Go and make are all that "make run" needs.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 1m
DURATION ?= 10m

# Checked with versions of their own, so that a new release cannot break a build.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

# The race detector watches our code. What is translated from C (SQLite) or only calculates (hashes, ciphers), and takes
# several times as long under it, is left out.
RACE = -race -gcflags=modernc.org/...=-race=0 -gcflags=crypto/internal/fips140/...=-race=0

# The version is stamped below; asking git for it again fails in checkouts of other users.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

PLATFORMS = linux/amd64 linux/arm64 windows/amd64 windows/arm64

.DEFAULT_GOAL := help
.PHONY: help build release run test test-all mutants soak fuzz bench bench-all bench-go lint go gcc postgresql redis chromium clients tools gofmt vet cross staticcheck govulncheck

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

build: go ## build ./aspstate
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o aspstate$(shell $(GO) env GOEXE) ./cmd/aspstate

release: go ## archives of all platforms in ./dist, with checksums
	@rm -rf dist && mkdir -p dist/extra/completions
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o dist/extra/aspstate ./cmd/aspstate
	@dist/extra/aspstate man >dist/extra/aspstate.1
	@for shell in bash zsh fish powershell; do dist/extra/aspstate completion $$shell >dist/extra/completions/aspstate.$$shell || exit 1; done
	@rm dist/extra/aspstate
	@for platform in $(PLATFORMS); do \
	  os=$${platform%/*}; arch=$${platform#*/}; name=aspstate-$(VERSION)-$$os-$$arch; \
	  mkdir "dist/$$name" && cp -r README.md CHANGELOG.md LICENSE docs deploy dist/extra/. config/example.yaml "dist/$$name/" && rm -r "dist/$$name/deploy/zip" || exit 1; \
	  exe=; [ $$os = windows ] && exe=.exe; \
	  CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o "dist/$$name/aspstate$$exe" ./cmd/aspstate || exit 1; \
	  if [ $$os = windows ]; then $(GO) run ./deploy/zip "dist/$$name.zip" dist "$$name"; \
	  else tar -C dist --owner=0 --group=0 --sort=name --mtime=@0 -czf "dist/$$name.tar.gz" "$$name"; fi || exit 1; \
	  rm -r "dist/$$name"; \
	done; rm -r dist/extra
	@cd dist && sha256sum aspstate-* >SHA256SUMS && cat SHA256SUMS

run: build ## build, and serve on 127.0.0.1:42424 with the sessions in ./data/aspstate.db
	@mkdir -p data
	./aspstate serve --sql-connection-string sqlite:data/aspstate.db

test: go gcc postgresql chromium gofmt vet cross ## what every change must pass: formatting, vet, all platforms, tests with -race
	$(GO) test $(RACE) -timeout 20m ./...
	cd bench && $(GO) test ./...
	@[ -n "$$ASPSTATE_TEST_SQLSERVER" ] || echo "NOT RUN: the suite of the SQL Server store, for want of a server: set ASPSTATE_TEST_SQLSERVER to a DSN (sqlserver://USER:PASSWORD@HOST)"

test-all: test lint clients tools ## test, lint, mutants, the tests that take long, and a short fuzzing of every parser
	ASPSTATE_TEST_LONG=1 $(GO) test -timeout 30m ./backends/postgres ./backends/sqlite ./server/admin/page ./server/tds ./harness
	$(MAKE) mutants
	$(MAKE) fuzz FUZZTIME=10s

mutants: go ## plant known faults, one at a time, and see that the tests find each
	$(GO) run ./harness/mutants

soak: go ## everything that can go wrong, in random mixture, for DURATION (10m)
	$(GO) test ./harness -run '^TestSoak$$' -soak $(DURATION) -timeout 0 -v

fuzz: go ## fuzz every target for FUZZTIME (1m) each
	@$(GO) list -f '{{.Dir}} {{.ImportPath}}' ./... | while read -r dir package; do \
	  for name in $$(cat "$$dir"/*_test.go 2>/dev/null | sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p'); do \
	    echo "== $$package $$name"; \
	    $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null || exit 1; \
	  done || exit 1; \
	done

bench: build redis postgresql ## compare with Redis, PostgreSQL and the possible, a quarter of an hour; BENCH='-only memory' for a part
	cd bench && $(GO) run . compare -out quick.json $(BENCH)

bench-all: build redis postgresql ## the same with a million sessions and many loads, more than an hour, and write docs/performance.md and docs/capacity.md
	cd bench && $(GO) run . compare -full -rounds 5 -round 5s -out results.json $(BENCH) && $(GO) run . report results.json

bench-go: go ## run the benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem ./...

lint: go gofmt vet staticcheck govulncheck ## gofmt, vet, staticcheck and govulncheck

go:
	@command -v $(GO) >/dev/null || { echo "Go is missing: install Go 1.26 or later from your package manager or the Go web site" >&2; exit 1; }

# install PACKAGES,WHAT FOR: with apt where that is possible, else it says what to install.
define install
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing $(1), which $(2)"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; \
	else \
	  echo "something is missing which $(2): install $(1) (Debian, Ubuntu: apt-get install $(1))" >&2; exit 1; \
	fi
endef

# The race detector needs a C compiler; the product does not.
gcc: go
	@command -v "$$($(GO) env CC)" >/dev/null && exit 0; $(call install,gcc libc6-dev,go test -race needs)

# The tests start servers of their own from these programs; no service needs to run.
postgresql:
	@{ command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 && \
	  { command -v pgbouncer || ls /usr/sbin/pgbouncer; } >/dev/null 2>&1 && exit 0; $(call install,postgresql pgbouncer,the tests of the PostgreSQL store need)

# The comparisons start servers of their own.
redis:
	@command -v redis-server >/dev/null && exit 0; $(call install,redis-server,the comparisons need)

# The tests of the admin listener's page drive it.
chromium:
	@for name in chromium chromium-browser google-chrome chrome; do command -v $$name >/dev/null && exit 0; done; $(call install,chromium,the tests of the page for operators need)

# Clients of mode="SQLServer" that are not in Go. The tests get tedious from npm themselves.
clients:
	@{ command -v node && command -v npm; } >/dev/null && exit 0; $(call install,nodejs npm,a test of the TDS front end needs)
	@command -v tsql >/dev/null && exit 0; $(call install,freetds-bin,a test of the TDS front end needs)
	@{ command -v mcs && ls /usr/lib/mono/4.5/System.Data.dll /usr/lib/mono/4.5/I18N.West.dll; } >/dev/null 2>&1 && exit 0; \
	  $(call install,mono-mcs mono-runtime libmono-system-data4.0-cil libmono-i18n-west4.0-cil,a test of the TDS front end needs)

# What the examples in deploy are for; they are tried and checked with it.
tools:
	@{ command -v haproxy || ls /usr/sbin/haproxy; } >/dev/null 2>&1 && command -v systemd-analyze >/dev/null && exit 0; $(call install,haproxy systemd,the tests of the examples in deploy need)

gofmt: go
	@files=$$($$($(GO) env GOROOT)/bin/gofmt -l .); [ -z "$$files" ] || { echo "not formatted, run gofmt -w:" >&2; echo "$$files" >&2; exit 1; }

vet: go
	$(GO) vet ./...
	cd bench && $(GO) vet ./...

# Tests do not run on Windows here, but vet reads them for it.
cross: go
	@for platform in $(PLATFORMS); do \
	  echo "building for $$platform"; \
	  export CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
	  $(GO) build ./... || exit 1; \
	  [ $$GOOS != windows ] || $(GO) vet ./... || exit 1; \
	done

staticcheck: go
	$(GO) run $(STATICCHECK) ./...
	cd bench && $(GO) run $(STATICCHECK) ./...

# Exit status 3 is a finding; anything else that is not 0 means that it could not look.
govulncheck: go
	@out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1); status=$$?; \
	case "$$status $$out" in \
	  0*) echo "govulncheck: no known vulnerability is called" ;; \
	  *"exit status 3"*) echo "$$out"; exit 1 ;; \
	  *) echo "govulncheck: NOT CHECKED, its database cannot be reached or it could not run:"; echo "$$out" | tail -n 3 ;; \
	esac
