package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// MongoDB changes a document in one step; FerretDB 1.x reads it, changes it and writes it back, so that of two
// updates at the same time one is lost. The gate stands before it and lets one write pass at a time.
type gate struct {
	socket string     // that FerretDB listens on
	turn   sync.Mutex // held from a write's request to its response

	guard  sync.Mutex // of what follows
	open   map[net.Conn]bool
	closed bool
}

const (
	headerSize  = 16
	maxMessage  = 48_000_000
	opMsg       = 2013
	moreToCome  = 1 << 1 // in a request: no response will come
	opCodeAt    = 12
	commandAt   = headerSize + 4 + 1 + 4 // flags, kind of the section, length of its document
	documentsAt = commandAt + 1          // the type of the first element; then its name, the command's
)

var writes = map[string]bool{"insert": true, "update": true, "delete": true, "findAndModify": true, "findandmodify": true}

// serve passes connections on until the listener is closed.
func (g *gate) serve(listener net.Listener) error {
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go g.pass(client)
	}
}

// close ends all connections.
func (g *gate) close() {
	g.guard.Lock()
	defer g.guard.Unlock()
	g.closed = true
	for connection := range g.open {
		connection.Close()
	}
}

func (g *gate) pass(client net.Conn) {
	defer g.forget(client)
	server, err := net.Dial("unix", g.socket)
	if err != nil {
		client.Close()
		return
	}
	defer g.forget(server)
	if !g.remember(client, server) {
		return
	}
	for {
		request, err := message(client)
		if err != nil {
			return
		}
		response, err := g.ask(server, request)
		if err != nil {
			return
		}
		if _, err = client.Write(response); err != nil {
			return
		}
	}
}

// ask sends a request on and returns the response, empty where none will come.
func (g *gate) ask(server net.Conn, request []byte) ([]byte, error) {
	if writes[command(request)] {
		g.turn.Lock()
		defer g.turn.Unlock()
	}
	if _, err := server.Write(request); err != nil {
		return nil, err
	}
	if unanswered(request) {
		return nil, nil
	}
	return message(server)
}

func (g *gate) remember(connections ...net.Conn) bool {
	g.guard.Lock()
	defer g.guard.Unlock()
	for _, connection := range connections {
		g.open[connection] = true
	}
	return !g.closed
}

func (g *gate) forget(connection net.Conn) {
	connection.Close()
	g.guard.Lock()
	defer g.guard.Unlock()
	delete(g.open, connection)
}

// message reads one message of the wire protocol: its length comes first.
func message(from io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(from, header); err != nil {
		return nil, err
	}
	length := int(int32(binary.LittleEndian.Uint32(header)))
	if length < headerSize || length > maxMessage {
		return nil, errors.New("a message of an impossible length")
	}
	whole := make([]byte, length)
	copy(whole, header)
	_, err := io.ReadFull(from, whole[headerSize:])
	return whole, err
}

// command is the name of the command in an OP_MSG; empty in any other message.
func command(request []byte) string {
	if len(request) <= documentsAt || binary.LittleEndian.Uint32(request[opCodeAt:]) != opMsg {
		return ""
	}
	name, _, _ := bytes.Cut(request[documentsAt:], []byte{0})
	return string(name)
}

func unanswered(request []byte) bool {
	return command(request) != "" && binary.LittleEndian.Uint32(request[headerSize:])&moreToCome != 0
}
