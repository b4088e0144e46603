// SPDX-License-Identifier: Apache-2.0

// Command cri asks a container runtime what a kubelet asks, with the kubelet's own client.
//
//	cri SOCKET run HANDLER    <PodSandboxConfig          -> id
//	cri SOCKET create POD     <CreateContainerRequest    -> id
//	cri SOCKET update ID      <ContainerResources
//	cri SOCKET exec ID WORD...      streams of a process, and its exit status
//	cri SOCKET exec-sync ID SECONDS WORD...
//	cri SOCKET logs ID PATH         as `kubectl logs` does
//	cri SOCKET start|stop|rm|status|stats ID
//	cri SOCKET stop-pod|rm-pod|status-pod|stats-pod ID
//	cri SOCKET version|info|ps|pods
//	cri SOCKET cycles POD N CLIENTS         <CreateContainerRequest: that often created, ended
//	cri SOCKET cycles-pods HANDLER N CLIENTS <the same: pods with a container    and removed
//
// What is asked comes as JSON, on standard input; so do answers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	client "k8s.io/cri-client/pkg"
	"k8s.io/cri-client/pkg/logs"
	utilexec "k8s.io/utils/exec"
)

const timeout = 60 * time.Second

type call struct {
	ctx  context.Context
	rt   cri.RuntimeService
	id   string
	args []string // after the id
}

func input(into proto.Message) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(text, into)
}

func show(m proto.Message, err error) error {
	if err != nil {
		return err
	}
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err == nil {
		fmt.Println(string(text))
	}
	return err
}

func showID(id string, err error) error {
	if err == nil {
		fmt.Println(id)
	}
	return err
}

func run(c *call) error {
	config := &v1.PodSandboxConfig{}
	if err := input(config); err != nil {
		return err
	}
	return showID(c.rt.RunPodSandbox(c.ctx, config, c.id))
}

func create(c *call) error {
	request := &v1.CreateContainerRequest{}
	if err := input(request); err != nil {
		return err
	}
	return showID(c.rt.CreateContainer(c.ctx, c.id, request.Config, request.SandboxConfig))
}

func update(c *call) error {
	resources := &v1.ContainerResources{}
	if err := input(resources); err != nil {
		return err
	}
	return c.rt.UpdateContainerResources(c.ctx, c.id, resources)
}

func stop(c *call) error {
	grace := int64(10)
	if len(c.args) > 0 {
		var err error
		if grace, err = strconv.ParseInt(c.args[0], 10, 64); err != nil {
			return err
		}
	}
	return c.rt.StopContainer(c.ctx, c.id, grace)
}

func exec(c *call) error {
	answer, err := c.rt.Exec(c.ctx, &v1.ExecRequest{
		ContainerId: c.id, Cmd: c.args, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	where, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, "POST", where)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(c.ctx, remotecommand.StreamOptions{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

func execSync(c *call) error {
	if len(c.args) < 2 {
		return errors.New("exec-sync ID SECONDS WORD...")
	}
	seconds, err := strconv.Atoi(c.args[0])
	if err != nil {
		return err
	}
	out, errs, err := c.rt.ExecSync(c.ctx, c.id, c.args[1:], time.Duration(seconds)*time.Second)
	os.Stdout.Write(out)
	os.Stderr.Write(errs)
	return err
}

func readLogs(c *call) error {
	if len(c.args) < 1 {
		return errors.New("logs ID PATH")
	}
	return logs.ReadLogs(c.ctx, c.args[0], c.id, &logs.LogOptions{}, c.rt, os.Stdout, os.Stderr)
}

func containers(c *call) error {
	list, err := c.rt.ListContainers(c.ctx, nil)
	return show(&v1.ListContainersResponse{Containers: list}, err)
}

func pods(c *call) error {
	list, err := c.rt.ListPodSandbox(c.ctx, nil)
	return show(&v1.ListPodSandboxResponse{Items: list}, err)
}

func stats(c *call) error {
	s, err := c.rt.ContainerStats(c.ctx, c.id)
	return show(s, err)
}

func podStats(c *call) error {
	s, err := c.rt.PodSandboxStats(c.ctx, c.id)
	return show(s, err)
}

func status(c *call) error {
	s, err := c.rt.ContainerStatus(c.ctx, c.id, false)
	return show(s, err)
}

func podStatus(c *call) error {
	s, err := c.rt.PodSandboxStatus(c.ctx, c.id, false)
	return show(s, err)
}

func info(c *call) error {
	s, err := c.rt.Status(c.ctx, false)
	return show(s, err)
}

// cycle makes a container, ends it in one of the ways there are, and removes it.
func cycle(c *call, n int, pod string, request *v1.CreateContainerRequest) error {
	config := proto.Clone(request.Config).(*v1.ContainerConfig)
	config.Metadata.Name = fmt.Sprintf("cycle%d", n)
	if n%5 == 4 { // it ends of itself
		config.Command = []string{"/stdio_upper.wasm"}
	}
	id, err := c.rt.CreateContainer(c.ctx, pod, config, request.SandboxConfig)
	fmt.Println(id)
	if err == nil && n%5 != 3 {
		err = c.rt.StartContainer(c.ctx, id)
	}
	switch {
	case err != nil:
		return err
	case n%5 == 0:
		err = c.rt.StopContainer(c.ctx, id, 0)
	case n%5 == 1:
		err = c.rt.StopContainer(c.ctx, id, 10)
	case n%5 == 4:
		for ended := false; !ended && err == nil; time.Sleep(time.Millisecond) {
			var s *v1.ContainerStatusResponse
			if s, err = c.rt.ContainerStatus(c.ctx, id, false); err == nil {
				ended = s.Status.State == v1.ContainerState_CONTAINER_EXITED
			}
		}
	}
	if err != nil {
		return err
	}
	return c.rt.RemoveContainer(c.ctx, id)
}

// cyclePod does so with a pod; the container goes with it, if it was not removed before.
func cyclePod(c *call, n int, request *v1.CreateContainerRequest) error {
	own := proto.Clone(request).(*v1.CreateContainerRequest)
	own.SandboxConfig.Metadata.Name = fmt.Sprintf("cycle%d", n)
	own.SandboxConfig.Metadata.Uid = own.SandboxConfig.Metadata.Name
	pod, err := c.rt.RunPodSandbox(c.ctx, own.SandboxConfig, c.id)
	if err != nil {
		return err
	}
	fmt.Println(pod)
	if n%3 == 0 {
		var id string
		if id, err = c.rt.CreateContainer(c.ctx, pod, own.Config, own.SandboxConfig); err == nil {
			fmt.Println(id)
			err = c.rt.StartContainer(c.ctx, id)
		}
	} else {
		err = cycle(c, n, pod, own)
	}
	if err == nil {
		err = c.rt.StopPodSandbox(c.ctx, pod)
	}
	if err == nil {
		err = c.rt.RemovePodSandbox(c.ctx, pod)
	}
	return err
}

// cycles runs @one with the numbers from 0 to N-1, CLIENTS at a time; prints what was made.
func cycles(c *call, one func(n int, request *v1.CreateContainerRequest) error) error {
	request := &v1.CreateContainerRequest{}
	if len(c.args) != 2 {
		return errors.New("cycles ID N CLIENTS")
	}
	n, err := strconv.Atoi(c.args[0])
	if err != nil {
		return err
	}
	clients, err := strconv.Atoi(c.args[1])
	if err != nil {
		return err
	}
	if err = input(request); err != nil {
		return err
	}
	var next atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, clients)
	for client := range clients {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[client] == nil; i = int(next.Add(1)) - 1 {
				errs[client] = one(i, request)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func containerCycles(c *call) error {
	return cycles(c, func(n int, request *v1.CreateContainerRequest) error {
		return cycle(c, n, c.id, request)
	})
}

func podCycles(c *call) error {
	return cycles(c, func(n int, request *v1.CreateContainerRequest) error {
		return cyclePod(c, n, request)
	})
}

func version(c *call) error {
	s, err := c.rt.Version(c.ctx, "v1")
	return show(s, err)
}

var verbs = map[string]func(*call) error{
	"run": run, "create": create, "update": update, "stop": stop, "exec": exec,
	"exec-sync": execSync, "logs": readLogs, "ps": containers, "pods": pods, "stats": stats,
	"stats-pod": podStats, "status": status, "status-pod": podStatus, "info": info,
	"version": version,
	"cycles":  containerCycles, "cycles-pods": podCycles,
	"start":    func(c *call) error { return c.rt.StartContainer(c.ctx, c.id) },
	"rm":       func(c *call) error { return c.rt.RemoveContainer(c.ctx, c.id) },
	"stop-pod": func(c *call) error { return c.rt.StopPodSandbox(c.ctx, c.id) },
	"rm-pod":   func(c *call) error { return c.rt.RemovePodSandbox(c.ctx, c.id) },
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "cri:", err)
	var ended utilexec.ExitError
	if errors.As(err, &ended) && ended.Exited() {
		os.Exit(ended.ExitStatus())
	}
	os.Exit(125)
}

func main() {
	if len(os.Args) < 3 || verbs[os.Args[2]] == nil {
		fail(errors.New("usage: cri SOCKET VERB [ID] [WORD...]; see main.go"))
	}
	limit := 2 * timeout
	if os.Args[2] == "cycles" || os.Args[2] == "cycles-pods" {
		limit = 24 * time.Hour
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	rt, err := client.NewRemoteRuntimeService(ctx, "unix://"+os.Args[1], timeout, nil, false)
	if err != nil {
		fail(err)
	}
	c := &call{ctx: ctx, rt: rt}
	if len(os.Args) > 3 {
		c.id = os.Args[3]
		c.args = os.Args[4:]
	}
	if err := verbs[os.Args[2]](c); err != nil {
		fail(err)
	}
}
