// A bare job server to compare jobsd with: gRPC over mutual TLS 1.3, os/exec into a cgroup, output to a file. It has no
// journal, no isolation, no user, no audit and no limits, and forgets everything when it ends.
// Arguments: CA CERT KEY CGROUP DIRECTORY. The directory is there, the cgroup is made where its parent is one.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "jobs/bench/proto/jobs/v1"
)

const messageBytes = 256 * 1024

type job struct {
	command *exec.Cmd
	path    string
	ended   chan struct{}

	mutex sync.Mutex
	size  int64
	grown chan struct{} // closed, and made anew, whenever size or over changes
	over  bool
}

type server struct {
	pb.UnimplementedWorkerServiceServer
	cgroup, directory string

	mutex sync.Mutex
	jobs  map[string]*job
}

func (s *server) Start(_ context.Context, request *pb.StartRequest) (*pb.StartResponse, error) {
	s.mutex.Lock()
	id := strconv.Itoa(len(s.jobs) + 1)
	j := &job{path: filepath.Join(s.directory, id), ended: make(chan struct{}), grown: make(chan struct{})}
	s.jobs[id] = j
	s.mutex.Unlock()
	file, err := os.Create(j.path)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	command := exec.Command(request.Command, request.Args...)
	group := filepath.Join(s.cgroup, id)
	if s.cgroup != "" {
		if err := os.Mkdir(group, 0o755); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		descriptor, err := syscall.Open(group, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		defer syscall.Close(descriptor)
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: descriptor, Setsid: true}
	}
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	j.command = command
	go j.own(output, file, group)
	return &pb.StartResponse{JobId: id, Pid: int32(command.Process.Pid)}, nil
}

// own moves a job's output to its file, waits for its end, and removes its cgroup.
func (j *job) own(output io.Reader, file *os.File, group string) {
	io.Copy(io.MultiWriter(file, j), output)
	j.command.Wait()
	file.Close()
	os.Remove(group)
	j.change(0, true)
	close(j.ended)
}

func (j *job) Write(bytes []byte) (int, error) {
	j.change(int64(len(bytes)), false)
	return len(bytes), nil
}

func (j *job) change(more int64, over bool) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.size += more
	j.over = over
	close(j.grown)
	j.grown = make(chan struct{})
}

func (j *job) now() (int64, bool, chan struct{}) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	return j.size, j.over, j.grown
}

func (s *server) find(id string) (*job, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if j := s.jobs[id]; j != nil {
		return j, nil
	}
	return nil, status.Error(codes.NotFound, "no such job")
}

func (s *server) Stop(_ context.Context, request *pb.StopRequest) (*pb.StopResponse, error) {
	j, err := s.find(request.JobId)
	if err != nil {
		return nil, err
	}
	j.command.Process.Kill()
	<-j.ended
	return &pb.StopResponse{}, nil
}

func (s *server) Wait(_ context.Context, request *pb.WaitRequest) (*pb.WaitResponse, error) {
	j, err := s.find(request.JobId)
	if err != nil {
		return nil, err
	}
	<-j.ended
	return &pb.WaitResponse{}, nil
}

func (s *server) Query(_ context.Context, request *pb.QueryRequest) (*pb.QueryResponse, error) {
	j, err := s.find(request.JobId)
	if err != nil {
		return nil, err
	}
	_, over, _ := j.now()
	return &pb.QueryResponse{Pid: int32(j.command.Process.Pid), Exited: over}, nil
}

func (s *server) Stream(request *pb.StreamRequest, stream pb.WorkerService_StreamServer) error {
	j, err := s.find(request.JobId)
	if err != nil {
		return err
	}
	file, err := os.Open(j.path)
	if err != nil {
		return err
	}
	defer file.Close()
	room := make([]byte, messageBytes)
	for offset := int64(0); ; {
		size, over, grown := j.now()
		for offset < size {
			count, err := file.ReadAt(room[:min(size-offset, messageBytes)], offset)
			if count == 0 {
				return err
			}
			if err := stream.Send(&pb.StreamResponse{Output: room[:count], Offset: uint64(offset)}); err != nil {
				return err
			}
			offset += int64(count)
		}
		if over || !request.Follow {
			return nil
		}
		select {
		case <-grown:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func main() {
	arguments := os.Args[1:]
	ca, err := os.ReadFile(arguments[0])
	check(err)
	pair, err := tls.LoadX509KeyPair(arguments[1], arguments[2])
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	if arguments[3] != "" {
		check(os.MkdirAll(arguments[3], 0o755))
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	secure := credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	})
	serving := grpc.NewServer(grpc.Creds(secure))
	pb.RegisterWorkerServiceServer(serving, &server{
		cgroup: arguments[3], directory: arguments[4], jobs: map[string]*job{},
	})
	healthpb.RegisterHealthServer(serving, health.NewServer())
	fmt.Println("listening on", listener.Addr())
	check(serving.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
