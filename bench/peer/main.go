// Converts the image of an OCI layout with nydus-snapshotter's Go package pkg/converter, in containerd's local content store:
// the peer that the project is measured and compared with. Import and export of blobs are outside the measured time.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	cconv "github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type labels struct {
	mu sync.Mutex
	m  map[digest.Digest]map[string]string
}

func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m[d], nil
}
func (l *labels) Set(d digest.Digest, v map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.m[d] = v
	return nil
}
func (l *labels) Update(d digest.Digest, v map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.m[d]
	if o == nil {
		o = map[string]string{}
	}
	for k, x := range v {
		if x == "" {
			delete(o, k)
		} else {
			o[k] = x
		}
	}
	l.m[d] = o
	return o, nil
}

// cpuTime is what this process and the builders that it has reaped have used up.
func cpuTime() time.Duration {
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		must(syscall.Getrusage(who, &used))
		total += time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	return total
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "ERR", err)
		os.Exit(1)
	}
}

func main() {
	layout := flag.String("layout", "", "oci layout")
	root := flag.String("root", "", "store root")
	builder := flag.String("builder", "nydus-image", "")
	fsv := flag.String("fs", "6", "")
	comp := flag.String("compressor", "", "")
	ociref := flag.Bool("oci-ref", false, "")
	batch := flag.String("batch", "", "")
	prefetch := flag.String("prefetch", "", "patterns; without, the package gives its default / to merge alone")
	oci := flag.Bool("oci", true, "")
	referrer := flag.Bool("referrer", false, "")
	mergeM := flag.Bool("merge-manifest", false, "")
	work := flag.String("work", "/tmp", "")
	out := flag.String("out", "", "write result desc")
	reconv := flag.Bool("reconvert", false, "")
	allp := flag.Bool("all", true, "")
	flag.Parse()
	ctx := context.Background()
	cs, err := local.NewLabeledStore(*root, &labels{m: map[digest.Digest]map[string]string{}})
	must(err)
	// import blobs (not timed)
	blobs := filepath.Join(*layout, "blobs", "sha256")
	es, err := os.ReadDir(blobs)
	must(err)
	for _, e := range es {
		dg := digest.Digest("sha256:" + e.Name())
		f, err := os.Open(filepath.Join(blobs, e.Name()))
		must(err)
		st, _ := f.Stat()
		err = content.WriteBlob(ctx, cs, "imp-"+e.Name(), f, ocispec.Descriptor{Digest: dg, Size: st.Size()})
		must(err)
		f.Close()
	}
	b, err := os.ReadFile(filepath.Join(*layout, "index.json"))
	must(err)
	var idx ocispec.Index
	must(json.Unmarshal(b, &idx))
	desc := idx.Manifests[0]
	start, cpuStart := time.Now(), cpuTime()
	var pm platforms.MatchComparer = platforms.All
	if !*allp {
		pm = platforms.DefaultStrict()
	}
	var nd *ocispec.Descriptor
	if *reconv {
		uo := converter.UnpackOption{WorkDir: *work, BuilderPath: *builder}
		fn := converter.DefaultIndexConvertFunc(converter.LayerReconvertFunc(uo), *oci, pm)
		nd, err = fn(ctx, cs, desc)
	} else {
		po := converter.PackOption{WorkDir: *work, BuilderPath: *builder, FsVersion: *fsv, Compressor: *comp, OCIRef: *ociref, BatchSize: *batch, PrefetchPatterns: *prefetch}
		mo := converter.MergeOption{WorkDir: *work, BuilderPath: *builder, FsVersion: *fsv, OCIRef: *ociref, OCI: *oci, WithReferrer: *referrer, MergeManifest: *mergeM, PrefetchPatterns: *prefetch}
		hooks := cconv.ConvertHooks{PostConvertHook: converter.ConvertHookFunc(mo)}
		fn := cconv.IndexConvertFuncWithHook(converter.LayerConvertFunc(po), *oci, pm, hooks)
		nd, err = fn(ctx, cs, desc)
	}
	must(err)
	el, cpu := time.Since(start), cpuTime()-cpuStart
	if nd == nil {
		fmt.Println("unchanged")
		return
	}
	fmt.Printf("convert_s %.3f\n", el.Seconds())
	fmt.Printf("cpu_s %.3f\n", cpu.Seconds())
	js, _ := json.Marshal(nd)
	fmt.Println(string(js))
	if *out != "" {
		must(os.MkdirAll(filepath.Join(*out, "blobs", "sha256"), 0755))
		// export the converted tree
		var walk func(d ocispec.Descriptor)
		walk = func(d ocispec.Descriptor) {
			ra, err := cs.ReaderAt(ctx, d)
			must(err)
			f, err := os.Create(filepath.Join(*out, "blobs", "sha256", d.Digest.Encoded()))
			must(err)
			_, err = io.Copy(f, content.NewReader(ra))
			must(err)
			must(f.Close())
			ra.Close()
			info, err := cs.Info(ctx, d.Digest)
			must(err)
			lj, err := json.Marshal(info.Labels)
			must(err)
			must(os.WriteFile(filepath.Join(*out, "labels-"+d.Digest.Encoded()[:12]+".json"), lj, 0644))
			if images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType) {
				cc, err := images.Children(ctx, cs, d)
				must(err)
				for _, c := range cc {
					if strings.HasPrefix(string(c.Digest), "sha256:") {
						walk(c)
					}
				}
			}
		}
		walk(*nd)
		ni := ocispec.Index{Manifests: []ocispec.Descriptor{*nd}}
		ni.SchemaVersion = 2
		ib, _ := json.MarshalIndent(ni, "", " ")
		must(os.WriteFile(filepath.Join(*out, "index.json"), ib, 0644))
		must(os.WriteFile(filepath.Join(*out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0644))
	}
}
