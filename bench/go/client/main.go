// Drives a job server and says on stdout, as JSON, what it measured: so that a server is measured and not its client.
// Arguments: SERVER CA CERT KEY MODE…, with one of these modes:
//
//	start COUNT        ms of COUNT starts of /bin/true, each behind the end of the one before
//	flight COUNT AT    jobs of /bin/true a second, start to end, AT of them at once
//	query COUNT        ms of COUNT queries of a job that has ended
//	stream ID CLIENTS  MB/s of all copies of a job's output together
//	follow COMMAND N   ms from each of N lines' time to its arrival; COMMAND writes CLOCK_MONOTONIC's ns
//	answer             nothing: one call
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "jobs/bench/proto/jobs/v1"
)

var ctx = context.Background()

func main() {
	arguments := os.Args[1:]
	connection := connect(arguments[0], arguments[1], arguments[2], arguments[3])
	worker := pb.NewWorkerServiceClient(connection)
	mode, rest := arguments[4], arguments[5:]
	_, err := healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{})
	check(err)
	var found any
	switch mode {
	case "start":
		found = starts(worker, number(rest[0]))
	case "flight":
		found = flight(worker, number(rest[0]), number(rest[1]))
	case "query":
		found = queries(worker, number(rest[0]))
	case "stream":
		found = copies(worker, rest[0], number(rest[1]))
	case "follow":
		found = follow(worker, rest[0], rest[1])
	case "answer":
	default:
		log.Fatal("no mode ", mode)
	}
	check(json.NewEncoder(os.Stdout).Encode(found))
}

func connect(server, ca, cert, key string) *grpc.ClientConn {
	pem, err := os.ReadFile(ca)
	check(err)
	pair, err := tls.LoadX509KeyPair(cert, key)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	secure := credentials.NewTLS(&tls.Config{
		RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS13,
	})
	connection, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(secure))
	check(err)
	return connection
}

func start(worker pb.WorkerServiceClient) string {
	started, err := worker.Start(ctx, &pb.StartRequest{Command: "/bin/true"})
	check(err)
	return started.JobId
}

func wait(worker pb.WorkerServiceClient, id string) {
	_, err := worker.Wait(ctx, &pb.WaitRequest{JobId: id})
	check(err)
}

func starts(worker pb.WorkerServiceClient, count int) []float64 {
	found := make([]float64, 0, count)
	for range count {
		began := time.Now()
		id := start(worker)
		found = append(found, since(began))
		wait(worker, id)
	}
	return found
}

func flight(worker pb.WorkerServiceClient, count, atOnce int) float64 {
	var left atomic.Int64
	left.Store(int64(count))
	began := time.Now()
	together(atOnce, func() {
		for left.Add(-1) >= 0 {
			wait(worker, start(worker))
		}
	})
	return float64(count) / time.Since(began).Seconds()
}

func queries(worker pb.WorkerServiceClient, count int) []float64 {
	id := start(worker)
	wait(worker, id)
	found := make([]float64, 0, count)
	for range count {
		began := time.Now()
		_, err := worker.Query(ctx, &pb.QueryRequest{JobId: id})
		check(err)
		found = append(found, since(began))
	}
	return found
}

func copies(worker pb.WorkerServiceClient, id string, clients int) float64 {
	var total atomic.Int64
	began := time.Now()
	together(clients, func() {
		stream, err := worker.Stream(ctx, &pb.StreamRequest{JobId: id})
		check(err)
		for message, err := stream.Recv(); err != io.EOF; message, err = stream.Recv() {
			check(err)
			total.Add(int64(len(message.Output)))
		}
	})
	return float64(total.Load()) / 1e6 / time.Since(began).Seconds()
}

func follow(worker pb.WorkerServiceClient, command, count string) []float64 {
	started, err := worker.Start(ctx, &pb.StartRequest{Command: command, Args: []string{count}})
	check(err)
	stream, err := worker.Stream(ctx, &pb.StreamRequest{JobId: started.JobId, Follow: true})
	check(err)
	var found []float64
	for message, err := stream.Recv(); err != io.EOF; message, err = stream.Recv() {
		check(err)
		var now unix.Timespec
		check(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
		for lines := bufio.NewScanner(bytes.NewReader(message.Output)); lines.Scan(); {
			found = append(found, float64(now.Nano()-int64(number(lines.Text())))/1e6)
		}
	}
	return found
}

func together(count int, work func()) {
	var all sync.WaitGroup
	for range count {
		all.Go(work)
	}
	all.Wait()
}

func since(began time.Time) float64 {
	return float64(time.Since(began).Nanoseconds()) / 1e6
}

func number(text string) int {
	found, err := strconv.Atoi(text)
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
