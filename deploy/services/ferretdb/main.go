// A server that speaks MongoDB's protocol, for development and tests: FerretDB on SQLite.
//
//	ferretdb --listen 127.0.0.1:27017 --dir .penstock/services/ferretdb/data
//
// Once it listens it prints its URL as the only line on standard output; port 0 takes a free one.
// It stops cleanly on SIGTERM and SIGINT.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:27017", "address and port to listen on; port 0: any free one")
	dir := flag.String("dir", "data", "folder of the databases, made where it is missing")
	flag.Parse()

	if err := run(*listen, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "ferretdb:", err)
		os.Exit(1)
	}
}

func run(listen, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	private, err := os.MkdirTemp("", "ferretdb-") // of mode 0700: nobody gets past the gate
	if err != nil {
		return err
	}
	defer os.RemoveAll(private)
	socket := filepath.Join(private, "socket")
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{Unix: socket},
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Handler:   "sqlite",
		SQLiteURL: "file:" + dir + "/",
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("mongodb://%s/\n", listener.Addr())

	stopped, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	door := &gate{socket: socket, open: map[net.Conn]bool{}}
	go func() {
		<-stopped.Done()
		listener.Close()
		door.close()
	}()
	ended := make(chan error, 1)
	go func() { ended <- server.Run(stopped) }()
	if err := door.serve(listener); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return <-ended
}
