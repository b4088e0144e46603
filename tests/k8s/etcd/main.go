// SPDX-License-Identifier: Apache-2.0

// Command etcd is etcd, of the version that its Kubernetes asks for.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
