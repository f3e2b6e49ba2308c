// docs/reading/reader.go as a program: the protocol is that of ../reader.py. Without modules from elsewhere: `dial` below is
// the few lines of a Redis client that it takes.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"waltag.test/reading/reading"
)

type request struct {
	Op, Key, Value string
	Tags           []string
	Timeout        int
}

type writer struct {
	value chan string
	done  chan error
}

var errMiss = errors.New("a miss")

func main() {
	at, err := url.Parse(os.Args[1])
	if err != nil {
		panic(err)
	}
	do, err := dial(at.Host)
	if err != nil {
		panic(err)
	}
	if _, err = do("SELECT", strings.TrimPrefix(at.Path, "/")); err != nil {
		panic(err)
	}
	late := map[string]writer{}
	say := json.NewEncoder(os.Stdout).Encode
	say(map[string]any{"ready": true, "library": runtime.Version()})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		asked := request{Timeout: 600}
		err := json.Unmarshal(lines.Bytes(), &asked)
		said := map[string]any{"ok": true}
		if err == nil {
			err = answer(do, asked, late, said)
		}
		if err != nil {
			said = map[string]any{"ok": false, "error": err.Error()}
		}
		say(said)
		if asked.Op == "quit" {
			break
		}
	}
}

func answer(do reading.Do, asked request, late map[string]writer, said map[string]any) error {
	switch asked.Op {
	case "set":
		if _, err := do("DEL", "record:"+asked.Key); err != nil {
			return err
		}
		compute := func() (string, error) { return asked.Value, nil }
		_, err := reading.Get(do, asked.Key, asked.Tags, compute, asked.Timeout)
		return err
	case "get":
		value, err := reading.Get(do, asked.Key, nil, func() (string, error) { return "", errMiss }, 1)
		said["value"] = value
		if err == errMiss {
			said["value"], err = nil, nil
		}
		return err
	case "begin":
		one, began := writer{make(chan string, 1), make(chan error, 1)}, make(chan bool)
		go func() {
			_, err := reading.Get(do, asked.Key, asked.Tags, func() (string, error) {
				close(began)
				return <-one.value, nil
			}, asked.Timeout)
			one.done <- err
		}()
		select {
		case <-began:
			late[asked.Key] = one
			return nil
		case err := <-one.done:
			if err == nil {
				err = errors.New("a hit: nothing is computed")
			}
			return err
		}
	case "finish":
		one, ok := late[asked.Key]
		if !ok {
			return errors.New("not begun")
		}
		delete(late, asked.Key)
		one.value <- asked.Value
		return <-one.done
	case "quit":
		return nil
	}
	return fmt.Errorf("no such op: %s", asked.Op)
}

func dial(address string) (reading.Do, error) {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	replies := bufio.NewReader(connection)
	var one sync.Mutex
	return func(arguments ...any) (any, error) {
		one.Lock()
		defer one.Unlock()
		command := fmt.Sprintf("*%d\r\n", len(arguments))
		for _, argument := range arguments {
			text := fmt.Sprint(argument)
			command += fmt.Sprintf("$%d\r\n%s\r\n", len(text), text)
		}
		if _, err := io.WriteString(connection, command); err != nil {
			return nil, err
		}
		return receive(replies)
	}, nil
}

func receive(replies *bufio.Reader) (any, error) {
	line, err := replies.ReadString('\n')
	if err != nil {
		return nil, err
	}
	kind, rest := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+':
		return rest, nil
	case '-':
		return nil, errors.New(rest)
	}
	number, err := strconv.Atoi(rest)
	if err != nil || kind == ':' {
		return number, err
	}
	if number < 0 {
		return nil, nil
	}
	if kind == '$' {
		text := make([]byte, number+2)
		_, err = io.ReadFull(replies, text)
		return string(text[:number]), err
	}
	list := make([]any, number)
	for i := range list {
		if list[i], err = receive(replies); err != nil {
			return nil, err
		}
	}
	return list, nil
}
