-- For wrk: POST bodies of SIZE bytes. With SLOW=5, five in a hundred begin with `S`, and what the other
-- messages waited is measured on its own: each body carries its time of sending, and the echo brings it back.
local ffi = require("ffi")
ffi.cdef [[ struct ts { long s; long ns; }; int clock_gettime(int, struct ts *); ]]
local now = ffi.new("struct ts")
local function micros()
  ffi.C.clock_gettime(1, now)
  return tonumber(now.s) * 1e6 + math.floor(tonumber(now.ns) / 1e3)
end

local slow = tonumber(os.getenv("SLOW") or "0")
wrk.method, wrk.body = "POST", string.rep("x", tonumber(os.getenv("SIZE") or "1024"))

if slow > 0 then
  local padding = wrk.body:sub(18)
  waits, count, threads = {}, 0, {}
  function setup(thread) table.insert(threads, thread) end
  function request()
    return wrk.format(nil, nil, nil, (math.random(100) <= slow and "S" or "F") .. string.format("%016d", micros()) .. padding)
  end
  function response(_, _, body)
    if body:sub(1, 1) == "F" then
      count = count + 1
      waits[count] = micros() - tonumber(body:sub(2, 17))
    end
  end
  function done()
    local all = threads[1]:get("waits")
    table.sort(all)
    print(string.format("others %d %d", all[math.ceil(#all * 0.5)], all[math.ceil(#all * 0.99)]))
  end
end
