;; SPDX-License-Identifier: Apache-2.0
;; Needs a host function that does not exist.
(module
  (import "roadrunner" "teleport" (func (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "roadrunner_abi") (result i32) (i32.const 1))
  (func (export "roadrunner_handle") (result i32) (i32.const 0)))
