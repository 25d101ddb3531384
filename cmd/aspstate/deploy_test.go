package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"aspstate/config"
)

// labels select pods.
type labels struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

// port is one of a container, a service or a policy.
type port struct {
	Name          string
	Port          string
	ContainerPort int    `yaml:"containerPort"`
	TargetPort    string `yaml:"targetPort"`
}

type podProbe struct {
	HTTPGet          struct{ Path, Port string } `yaml:"httpGet"`
	PeriodSeconds    int                         `yaml:"periodSeconds"`
	FailureThreshold int                         `yaml:"failureThreshold"`
	TimeoutSeconds   int                         `yaml:"timeoutSeconds"`
}

// The manifests have only fields of those that are meant, and they fit together, the settings and what the server serves.
func TestKubernetesManifests(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "kubernetes", "aspstate.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	type object[Spec any] struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name   string
			Labels map[string]string
		}
		Data map[string]string
		Spec Spec
	}
	var configMap, kind object[any]
	var deployment object[struct {
		Replicas int
		Selector labels
		Strategy struct {
			RollingUpdate struct {
				MaxUnavailable int `yaml:"maxUnavailable"`
				MaxSurge       int `yaml:"maxSurge"`
			} `yaml:"rollingUpdate"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				AutomountServiceAccountToken  bool             `yaml:"automountServiceAccountToken"`
				EnableServiceLinks            bool             `yaml:"enableServiceLinks"`
				TerminationGracePeriodSeconds int              `yaml:"terminationGracePeriodSeconds"`
				SecurityContext               map[string]any   `yaml:"securityContext"`
				TopologySpreadConstraints     []map[string]any `yaml:"topologySpreadConstraints"`
				Containers                    []struct {
					Name, Image    string
					Args           []string
					Ports          []port
					StartupProbe   podProbe `yaml:"startupProbe"`
					LivenessProbe  podProbe `yaml:"livenessProbe"`
					ReadinessProbe podProbe `yaml:"readinessProbe"`
					Lifecycle      struct {
						PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
					}
					Resources       map[string]map[string]string
					SecurityContext map[string]any `yaml:"securityContext"`
					VolumeMounts    []struct {
						Name      string
						MountPath string `yaml:"mountPath"`
						ReadOnly  bool   `yaml:"readOnly"`
					} `yaml:"volumeMounts"`
				}
				Volumes []struct {
					Name      string
					ConfigMap struct{ Name string } `yaml:"configMap"`
					Secret    struct {
						SecretName string `yaml:"secretName"`
					}
				}
			}
		}
	}]
	var service object[struct {
		Selector map[string]string
		Ports    []port
	}]
	var budget object[struct {
		MinAvailable int `yaml:"minAvailable"`
		Selector     labels
	}]
	var policy object[struct {
		PodSelector labels   `yaml:"podSelector"`
		PolicyTypes []string `yaml:"policyTypes"`
		Ingress     []struct {
			From  []map[string]labels
			Ports []port
		}
	}]
	want := map[string]struct {
		version string
		into    any
	}{
		"ConfigMap": {"v1", &configMap}, "Deployment": {"apps/v1", &deployment}, "Service": {"v1", &service},
		"PodDisruptionBudget": {"policy/v1", &budget}, "NetworkPolicy": {"networking.k8s.io/v1", &policy},
	}
	for document := range strings.SplitSeq(string(data), "\n---\n") {
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		strict := yaml.NewDecoder(strings.NewReader(document))
		strict.KnownFields(true)
		w, there := want[kind.Kind]
		if !there || w.version != kind.APIVersion || kind.Metadata.Name != "aspstate" {
			t.Fatalf("%s %q of %q", kind.Kind, kind.Metadata.Name, kind.APIVersion)
		}
		if err := strict.Decode(w.into); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
		delete(want, kind.Kind)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}

	text := configMap.Data["aspstate.yaml"]
	dir := t.TempDir()
	text = strings.ReplaceAll(text, "/secrets/connection", write(t, filepath.Join(dir, "connection"), "postgres://u:p@h/d"))
	text = strings.ReplaceAll(text, "/secrets/token", write(t, filepath.Join(dir, "token"), "abcdefghijklmnopqrst"))
	c, err := config.Load(write(t, filepath.Join(dir, "aspstate.yaml"), text), nil, nil)
	if err != nil || !c.AutoMigrate || c.Admin.Token.Text() != "abcdefghijklmnopqrst" {
		t.Fatalf("the settings of the ConfigMap: %v", err)
	}
	spec := deployment.Spec.Template.Spec
	if len(spec.Containers) != 1 {
		t.Fatalf("%d containers", len(spec.Containers))
	}
	container := spec.Containers[0]
	ports := map[string]string{}
	for _, p := range container.Ports {
		ports[p.Name] = fmt.Sprintf("0.0.0.0:%d", p.ContainerPort)
	}
	if ports["state"] != c.Listen[0] || ports["admin"] != c.Admin.Listen {
		t.Errorf("the container has the ports %v, the settings %v and %s", ports, c.Listen, c.Admin.Listen)
	}
	for path, p := range map[string][]podProbe{"/livez": {container.StartupProbe, container.LivenessProbe}, "/readyz": {container.ReadinessProbe}} {
		for _, p := range p {
			if p.HTTPGet.Path != path || p.HTTPGet.Port != "admin" {
				t.Errorf("a probe asks %v, want %s at the admin port", p.HTTPGet, path)
			}
		}
	}
	if stop := time.Duration(container.Lifecycle.PreStop.Sleep.Seconds)*time.Second + drainTime + moveTime; time.Duration(spec.TerminationGracePeriodSeconds)*time.Second < stop {
		t.Errorf("the server may take %v to stop, and is given %d s", stop, spec.TerminationGracePeriodSeconds)
	}
	mounts := map[string]bool{}
	for _, v := range spec.Volumes {
		mounts[v.Name] = v.ConfigMap.Name == "aspstate" || v.Secret.SecretName == "aspstate"
	}
	for _, m := range container.VolumeMounts {
		if !mounts[m.Name] || !m.ReadOnly {
			t.Errorf("%s is not a volume of the ConfigMap or the Secret, or can be written", m.MountPath)
		}
	}
	if deployment.Spec.Replicas <= budget.Spec.MinAvailable {
		t.Errorf("of %d servers %d have to be there: no node could ever be emptied", deployment.Spec.Replicas, budget.Spec.MinAvailable)
	}
	pods := deployment.Spec.Template.Metadata.Labels
	for what, selected := range map[string]map[string]string{
		"Deployment": deployment.Spec.Selector.MatchLabels, "Service": service.Spec.Selector,
		"PodDisruptionBudget": budget.Spec.Selector.MatchLabels, "NetworkPolicy": policy.Spec.PodSelector.MatchLabels,
	} {
		if len(pods) == 0 || !maps.Equal(selected, pods) {
			t.Errorf("%s selects %v, the pods are %v", what, selected, pods)
		}
	}
	named := []string{service.Spec.Ports[0].TargetPort}
	for _, rule := range policy.Spec.Ingress {
		for _, p := range rule.Ports {
			named = append(named, p.Port)
		}
	}
	for _, name := range named {
		if ports[name] == "" {
			t.Errorf("the container has no port %q", name)
		}
	}
}

func TestComposeFile(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "container", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var compose struct {
		Services map[string]struct {
			Image       string
			Build       struct{ Context, Dockerfile string }
			Environment map[string]string
			Secrets     []string
			Volumes     []string
			Ports       []string
			HealthCheck struct {
				Test     []string
				Interval string
			} `yaml:"healthcheck"`
			DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
			ReadOnly    bool                                  `yaml:"read_only"`
			CapDrop     []string                              `yaml:"cap_drop"`
			SecurityOpt []string                              `yaml:"security_opt"`
			GracePeriod time.Duration                         `yaml:"stop_grace_period"`
			Restart     string
		}
		Volumes map[string]struct{}
		Secrets map[string]struct{ File string }
	}
	strict := yaml.NewDecoder(bytes.NewReader(data))
	strict.KnownFields(true)
	if err := strict.Decode(&compose); err != nil {
		t.Fatal(err)
	}
	if d := compose.Services["database"]; d.Image == "" || len(d.HealthCheck.Test) == 0 {
		t.Errorf("the database is %+v", d)
	}
	for _, name := range []string{"aspstate1", "aspstate2"} {
		s := compose.Services[name]
		_, port, _ := strings.Cut(strings.Join(s.Ports, ","), ":")
		if port != "42424" || s.Environment["ASPSTATE_ALLOW"] == "" || s.DependsOn["database"].Condition != "service_healthy" || s.GracePeriod < drainTime+moveTime {
			t.Errorf("%s is %+v", name, s)
		}
		if _, err := os.Stat(filepath.Join("..", "..", "deploy", "container", s.Build.Context, s.Build.Dockerfile)); err != nil {
			t.Errorf("%s: its container file: %v", name, err)
		}
		settings := slices.Collect(maps.Keys(s.Environment))
		for _, known := range (&config.Config{}).Settings() {
			settings = slices.DeleteFunc(settings, func(name string) bool {
				return strings.EqualFold(name, "ASPSTATE_"+strings.ReplaceAll(known.Key, ".", "_"))
			})
		}
		if len(settings) > 0 {
			t.Errorf("%s: there are no settings %v", name, settings)
		}
		for _, secret := range s.Secrets {
			if compose.Secrets[secret].File == "" {
				t.Errorf("%s: there is no secret %s", name, secret)
			}
		}
	}
}
