package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"aspstate/config"
)

// The manifests are YAML of the kinds that they say, and the settings in them are right.
func TestKubernetesManifests(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "aspstate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Data       map[string]string
		Spec       map[string]any
	}
	kinds := map[string]object{}
	for in := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var o object
		err := in.Decode(&o)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if o.APIVersion == "" || o.Metadata.Name != "aspstate" {
			t.Errorf("%s %q of %q", o.Kind, o.Metadata.Name, o.APIVersion)
		}
		kinds[o.Kind] = o
	}
	for _, kind := range []string{"ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"} {
		if _, there := kinds[kind]; !there {
			t.Errorf("there is no %s", kind)
		}
	}
	text := kinds["ConfigMap"].Data["aspstate.yaml"]
	dir := t.TempDir()
	text = strings.ReplaceAll(text, "/secrets/connection", write(t, filepath.Join(dir, "connection"), "postgres://u:p@h/d"))
	text = strings.ReplaceAll(text, "/secrets/token", write(t, filepath.Join(dir, "token"), "abcdefghijklmnopqrst"))
	c, err := config.Load(write(t, filepath.Join(dir, "aspstate.yaml"), text), nil, nil)
	if err != nil || !c.AutoMigrate || c.Admin.Token.Text() != "abcdefghijklmnopqrst" {
		t.Errorf("the settings of the ConfigMap: %v", err)
	}
}

func TestComposeFile(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "container", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct {
			Environment map[string]string
			Secrets     []string
			Ports       []string
		}
		Secrets map[string]struct{ File string }
	}
	if err := yaml.Unmarshal(data, &compose); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"aspstate1", "aspstate2"} {
		s := compose.Services[name]
		if len(s.Ports) != 1 || s.Environment["ASPSTATE_ALLOW"] == "" {
			t.Errorf("%s is %+v", name, s)
		}
		for _, secret := range s.Secrets {
			if compose.Secrets[secret].File == "" {
				t.Errorf("%s: there is no secret %s", name, secret)
			}
		}
	}
}
