-- For wrk: POST requests with the content of the file BODY, of the type KIND, to REQUEST_PATH. With PATHS
-- above 1 a %d in the path counts from 0 to PATHS - 1 and begins anew.
local file = assert(io.open(os.getenv("BODY"), "rb"))
local body, path, paths = file:read("*a"), os.getenv("REQUEST_PATH"), tonumber(os.getenv("PATHS"))
file:close()
wrk.method, wrk.body, wrk.path = "POST", body, path
wrk.headers["Content-Type"] = os.getenv("KIND")

if paths > 1 then
  local requests, turn = {}, 0
  function init()
    for number = 0, paths - 1 do
      requests[number] = wrk.format("POST", path:format(number))
    end
  end
  function request()
    turn = (turn + 1) % paths
    return requests[turn]
  end
end
